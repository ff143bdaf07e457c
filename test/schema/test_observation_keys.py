from torchrl_vla.schema import ObservationKeys


def test_keys_that_are_none_are_not_read():
    keys = ObservationKeys(image=None, state=("a", ("b", "c")), instruction="text")
    assert keys.present == [("a", "b", "c"), "text"]


def test_records_with_the_same_keys_are_equal():
    assert ObservationKeys(state=("a", ("b",))) == ObservationKeys(state=("a", "b"))
