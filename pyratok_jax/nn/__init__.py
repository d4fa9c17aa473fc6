"""Building blocks that know no architecture."""
