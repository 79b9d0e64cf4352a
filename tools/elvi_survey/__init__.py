"""Catalog of papers: loading, checks, exports and the site generator.  Never imports torch."""
