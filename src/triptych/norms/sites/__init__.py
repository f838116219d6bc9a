"""Where each backbone has the norms that the DTN paper replaces, one file for each kind."""

from triptych.norms.sites.find import find_sites, native_norm
from triptych.norms.sites.site import ListsNormSites, NormSites, Replacement, block_sites

__all__ = ["ListsNormSites", "NormSites", "Replacement", "block_sites", "find_sites", "native_norm"]
