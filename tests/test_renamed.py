"""Old names fail with a sentence that says the new one, and the new one exists."""

import importlib
import re

import pytest
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from ocl_msf._renamed import KEYWORDS, MODULES, TARGETS, VALUES

pytestmark = pytest.mark.needs_host


@pytest.mark.parametrize("old", TARGETS)
def test_an_old_class_says_its_new_name(old):
    module, name = old.rsplit(".", 1)
    with pytest.raises(ImportError, match=re.escape(MODULES.get(module, TARGETS[old]))):
        getattr(importlib.import_module(module), name)
    assert get_object(TARGETS[old])


def test_an_old_class_in_a_config_says_its_new_name():
    for target in ("ocl_msf.losses.Weighted", "routed.ocl_msf.losses.Weighted"):
        with pytest.raises(InstantiationException) as error:
            instantiate({"_target_": target})
        assert "ocl_msf.losses.Weighted is called ocl_msf.losses.WeightedLoss now." in str(error.value.__cause__)


@pytest.mark.parametrize("target", KEYWORDS)
def test_an_old_keyword_says_its_new_name(target):
    for old, new in KEYWORDS[target].items():
        with pytest.raises(Exception, match=f"{old} is called {new} now"):
            instantiate({"_target_": target, old: None})


WORDS = [(target, keyword, word) for target in VALUES for keyword in VALUES[target] for word in VALUES[target][keyword]]


@pytest.mark.parametrize("target, keyword, word", WORDS)
def test_an_old_word_says_which_module_to_write(target, keyword, word):
    config = VALUES[target][keyword][word]
    with pytest.raises(Exception, match=f"Instead of '{word}' write .*{re.escape(config['_target_'])}"):
        instantiate({"_target_": target, keyword: word})
    built = instantiate({"_target_": target, "dim": 4, "codebook_size": 8, "num_scales": 2, keyword: config})
    assert type(getattr(built, keyword)) is get_object(config["_target_"])


def test_a_name_that_never_was_is_an_ordinary_error():
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        from ocl_msf.losses import Nothing  # noqa: F401
