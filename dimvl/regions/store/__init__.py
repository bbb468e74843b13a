"""The region store: the regions of many images in one or several folders, between the detector and training.

A folder, with every number little-endian:

    manifest.json            what the folder contains, with a checksum of itself; replacing this file commits a change
    index.bin                one `INDEX_DTYPE` record per image, in the order of writing; images are numbered by it
    ids.bin                  the image ids as UTF-8, end to end
    lookup.bin               (2, images) uint64: hashes of the ids in rising order, and their positions
    shard-00000.safetensors  regions of consecutive images: `features`, and `details`, one float32 matrix of boxes,
                             class ids and scores, attribute ids and scores side by side

`index.bin` and `ids.bin` only grow, and readers ignore what is beyond the counts in the manifest. So a reader sees a
finished state, whatever a writer does or however it ends. A folder has one writer at a time; several processes write
several folders, which are then read as one store.

Features are float16, or int8 with a scale per row, which is then the first column of `details`. A packed read returns
them as stored, so that no more bytes go to the model's device than were read from disk.

No Python object exists per image: index, ids and lookup are memory-mapped. Rows are read with `preadv`, which has no
file position, so forked processes can share the descriptors. Ids are found by a 64-bit hash and then compared in full,
so colliding hashes do no harm.

`format.py` has the formats, `folder.py` opens one folder, `reader.py` joins folders to a `RegionStore`, `writer.py`
writes, `check.py` verifies, `summary.py` counts.
"""

from dimvl.regions.store.reader import PackedRegions, RegionStore, feature_statistics

__all__ = ["PackedRegions", "RegionStore", "feature_statistics"]
