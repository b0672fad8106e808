"""The compiled loops where nothing can be kept on disk."""

_UNWRITABLE = """
import numba.core.caching as caching
found = getattr(caching, "CacheImpl", None) or caching._CacheImpl  # its older name
found._locator_classes = []  # what numba is left with: no folder to write to
import numpy as np
from caureid_plugin.clustering import kernels
print(kernels.squared_distance(np.float32([3, 0]), np.float32([0, 4])))
"""


def test_without_a_folder_to_write_to_loops_are_compiled_each_time(run_python):
    done = run_python("-c", _UNWRITABLE)
    assert (done.returncode, done.stdout.split()) == (0, ["25.0"]), done.stderr
    assert done.stderr.count("compiled anew by each process") == 1
    assert "no locator available" in done.stderr and "NUMBA_CACHE_DIR" in done.stderr


_FULL = """
import errno
from numba.core.caching import IndexDataCacheFile
def save(self, key, data):
    raise OSError(errno.EDQUOT, "Disk quota exceeded")
IndexDataCacheFile.save = save
import numpy as np
from caureid_plugin.clustering import kernels
bits = np.int16([[-1, 2]])
kernels.order_bits(bits, 15, 32767, 0, 1)
print(kernels.squared_distance(np.float32([3, 0]), np.float32([0, 4])), *bits[0])
"""


def test_a_folder_that_takes_no_more_is_as_none(run_python, tmp_path):
    done = run_python("-c", _FULL, NUMBA_CACHE_DIR=tmp_path / "cache")
    assert (done.returncode, done.stdout.split()) == (0, ["25.0", "-32768", "2"]), done.stderr
    assert done.stderr.count("compiled anew by each process") == 1
    assert "Disk quota exceeded" in done.stderr and "NUMBA_CACHE_DIR" in done.stderr
