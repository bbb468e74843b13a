"""From pixels to regions: detectors, extraction, importers, the region store."""
