"""The one error of the site generator."""

from elvi.errors import ElviError


class SiteError(ElviError):
    """The site cannot be built: one sentence on what is wrong and what to do."""
