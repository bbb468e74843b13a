from dimvl.regions.vocabulary import is_background


def test_a_name_for_no_class_is_recognised_in_any_spelling():
    usual = ["background", "__background__", "_Background_", "BG", "<bg>", "unknown", "UNK", "[UNK]", "none", "N/A"]
    usual += ["n.a.", "no object", "no-object", "No_Object", "void", "null", "", " ", "-", "<pad>", "__ignore__"]
    assert [name for name in usual if not is_background(name)] == []


def test_other_names_are_classes():
    classes = ["person", "0", "bag", "no", "nun", "background building", "nasa", "unknown animal", "背景板", "other"]
    assert [name for name in classes if is_background(name)] == []
