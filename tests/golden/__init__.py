"""Every format that is stored, as files that stay as they are: each is read by today's code, and written
again byte by byte.

`values.py` has the values in plain words, `writers.py` what writes them, `data/` what version 0.1.0 (commit
35c04e5) wrote. Names that are stored stand in `data/` and in strings alone, so that no rename of classes,
fields and functions changes both sides at once. `python -m tests.golden.write` adds the folder of a format
that has none yet; it never replaces one.
"""
