"""Compiled functions where numba finds no folder for its cache."""

import importlib

import numba
import pytest
from numba.core import caching

from datamodules import numba_cache


@numba.njit
def doubled(number):
    return 2 * number


def test_private_folder_takes_the_place_of_one_that_cannot_be_written(monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [caching.UserProvidedCacheLocator])
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(doubled.py_func)
    importlib.reload(numba_cache)
    assert numba.njit(cache=True)(doubled.py_func)(3) == 6


def test_numbas_own_choice_is_kept(monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    importlib.reload(numba_cache)
    assert numba.config.CACHE_DIR == ""
