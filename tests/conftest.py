"Lets the tests import the scripts of `.ci/`, and keeps their caches out of the user's."
import sys
from pathlib import Path

import pytest
from browser import Browser

sys.path.insert(0, str(Path(__file__).parents[1]/'.ci'))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp('cache')
    monkeypatch.setenv('DISENTANGLE_CACHE', str(folder))
    return folder


@pytest.fixture(scope='session')
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp('profile')) as browser: yield browser
