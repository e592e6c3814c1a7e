"""A run-side install has no torch: the build side says so in a sentence."""

from export import lacking


def test_what_is_missing_is_named_with_the_way_to_get_it():
    assert lacking() is None
    assert lacking(("json", "no_such_package")) == (
        "this is the build side and needs no_such_package: make test installs it, "
        "or pip install -e '.[export]'"
    )
