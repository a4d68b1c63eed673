from service import errors
from service.errors import AstrolabeError


def tree(root: type[AstrolabeError]) -> list[type[AstrolabeError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in tree(child))]


def test_every_leaf_has_its_own_code_title_and_an_error_status() -> None:
    leaves = [leaf for leaf in tree(AstrolabeError) if not leaf.__subclasses__()]
    codes = [leaf.code for leaf in leaves]
    assert len(set(codes)) == len(codes)
    assert all("code" in leaf.__dict__ and "title" in leaf.__dict__ for leaf in leaves)
    assert all(400 <= leaf.status < 600 for leaf in leaves)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = errors.__doc__ or ""
    for leaf in tree(AstrolabeError):
        assert f" {leaf.__name__} " in drawn or f" {leaf.__name__}\n" in drawn, leaf


def test_the_status_in_the_docstring_is_the_status() -> None:
    drawn = (errors.__doc__ or "").splitlines()
    for leaf in tree(AstrolabeError):
        for line in drawn:
            words = line.replace("│", " ").replace("├──", " ").replace("└──", " ").split()
            if words[:1] == [leaf.__name__] and words[1:2] and words[1].isdigit():
                assert int(words[1]) == leaf.status, leaf
