"""The site generator: catalog, code facts and results files in, a static site out."""
