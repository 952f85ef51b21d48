"""The phone book: names, messages, entry points, broken plug-ins."""

import importlib
import sys
import textwrap
import warnings
from itertools import count

import pytest

from cellvit.errors import CellViTError, ConfigError, PluginError, UnknownPluginError
from cellvit.plugins.registry import Registry

NUMBER = count()


class Shape:
    """Base of the entries."""


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Make an importable package of its own, so that no two tests share entry points or modules."""
    name = f"shapes_{next(NUMBER)}"
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Package(tmp_path, name)
    for module in [m for m in sys.modules if m.startswith(name)]:
        del sys.modules[module]


class Package:
    """A package on disk and the distributions that plug into it."""

    def __init__(self, folder, name):
        self.folder = folder
        self.name = name
        self.write("__init__", "")

    def write(self, module, source):
        path = self.folder / self.name / f"{module}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source))

    def distribution(self, name, entry_points, source, *, version="1.0"):
        """Write an installed distribution with one module, as an installer would leave it."""
        module = f"{self.name}_{name}"
        (self.folder / f"{module}.py").write_text(textwrap.dedent(source))
        info = self.folder / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [f"[{self.name}]", *(f"{key} = {module}:{value}" for key, value in entry_points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")

    def registry(self):
        importlib.invalidate_caches()  # files were written since the folder was last listed
        return Registry("shape", Shape, package=self.name)


SOUND = "from test_registry import Shape\nclass Star(Shape): pass\nclass Moon(Shape): pass\n"
BROKEN = "raise OSError('libmoon.so is missing')\n"


@pytest.fixture(autouse=True)
def _importable_base(monkeypatch):
    """Let the plug-ins on disk import this module's base class under a fixed name."""
    monkeypatch.setitem(sys.modules, "test_registry", sys.modules[__name__])


def test_register_returns_the_class_unchanged_and_get_finds_it(group):
    shapes = group.registry()

    class Round(Shape):
        pass

    assert shapes.register("round")(Round) is Round
    assert shapes.get("round") is Round
    assert shapes.names() == list(shapes) == ["round"]
    assert "round" in shapes
    assert "square" not in shapes
    assert shapes.origin("round") == __name__


def test_names_are_sorted(group):
    shapes = group.registry()
    for name in ("c", "a", "b"):
        shapes.register(name)(type(name, (Shape,), {}))
    assert shapes.names() == ["a", "b", "c"]


def test_unknown_name_lists_close_matches_first_and_all_names(group):
    shapes = group.registry()
    for name in ("vit-256", "sam-b", "sam-h"):
        shapes.register(name)(type("Some", (Shape,), {}))
    with pytest.raises(UnknownPluginError, match="no shape 'vit256'; did you mean 'vit-256'") as caught:
        shapes.get("vit256")
    assert str(caught.value).endswith("known: sam-b, sam-h, vit-256")
    assert isinstance(caught.value, CellViTError)
    assert isinstance(caught.value, LookupError)
    with pytest.raises(UnknownPluginError) as caught:
        shapes.get("sam-x")
    assert "did you mean 'sam-h' or 'sam-b'?" in str(caught.value) or "'sam-b' or 'sam-h'?" in str(caught.value)


def test_unknown_name_without_a_close_match_makes_no_guess(group):
    shapes = group.registry()
    with pytest.raises(
        UnknownPluginError, match=r"^no shape 'zzz'; if a package brings it, install that; known: none$"
    ):
        shapes.get("zzz")


def test_taken_name_is_refused_and_names_the_owner(group):
    shapes = group.registry()

    @shapes.register("round")
    class First(Shape):
        pass

    with pytest.raises(ConfigError, match=r"name 'round' is taken by .*\.First of 'test_registry'; choose another"):
        shapes.register("round")(type("Second", (Shape,), {}))
    assert shapes.get("round") is First


@pytest.mark.parametrize("wrong", [int, lambda: None])
def test_what_does_not_derive_from_the_base_is_refused(group, wrong):
    shapes = group.registry()
    with pytest.raises(ConfigError, match="must be a class that derives from Shape"):
        shapes.register("odd")(wrong)
    assert "odd" not in shapes


def test_own_package_is_imported_when_first_asked_and_only_once(group):
    registry = f"""
        import sys
        from test_registry import Shape
        from cellvit.plugins.registry import Registry
        SHAPES = Registry("shape", Shape, package="{group.name}")
    """
    group.write("base", registry)
    group.write("own", f"from test_registry import Shape\nfrom {group.name}.base import SHAPES\n"
                       "assert SHAPES.names() == []\n"  # asking while loading must not recurse
                       "@SHAPES.register('own')\nclass Own(Shape): pass\n")  # fmt: skip
    group.write("__init__", "from . import own\n")
    shapes = importlib.import_module(f"{group.name}.base").SHAPES
    assert shapes.names() == ["own"]
    assert shapes.get("own").__module__ == f"{group.name}.own"


def test_own_package_that_fails_to_import_says_so_every_time(group):
    group.write("__init__", "raise RuntimeError('half installed')\n")
    shapes = group.registry()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="half installed"):
            shapes.get("round")


def test_entry_points_are_loaded_before_a_name_is_called_unknown(group):
    group.distribution("sky", {"star": "Star", "moon": "Moon"}, SOUND)
    shapes = group.registry()
    assert shapes.get("star").__name__ == "Star"
    assert shapes.names() == ["moon", "star"]
    assert shapes.origin("moon") == "sky"


def test_entry_points_are_not_imported_before_they_are_needed(group):
    group.distribution("sky", {"star": "Star"}, "import sys\nsys.modules[__name__ + '_ran'] = sys\n" + SOUND)
    shapes = group.registry()
    shapes.register("round")(type("Round", (Shape,), {}))
    shapes.get("round")
    assert f"{group.name}_sky_ran" not in sys.modules
    shapes.load()
    assert f"{group.name}_sky_ran" in sys.modules


def test_entry_point_of_another_group_is_ignored(group, tmp_path):
    group.distribution("sky", {"star": "Star"}, SOUND)
    other = Package(tmp_path, f"{group.name}_other")
    assert other.registry().names() == []


def test_plugin_that_registers_itself_and_declares_an_entry_point_counts_once(group):
    shapes = group.registry()

    class Star(Shape):
        pass

    shapes.register("star")(Star)
    sys.modules[f"{group.name}_self"] = sys.modules[__name__]
    sys.modules[__name__].SelfStar = Star
    group.distribution("self", {"star": "SelfStar"}, "")
    shapes.load()  # a warning would be an error here
    assert shapes.get("star") is Star
    assert shapes.origin("star") == "self"


def test_broken_plugin_warns_once_and_the_others_live(group):
    group.distribution("bad", {"moon": "Moon"}, BROKEN)
    group.distribution("sky", {"star": "Star"}, SOUND)
    shapes = group.registry()
    with pytest.warns(RuntimeWarning, match="shape plug-in 'moon' of 'bad' cannot be used: OSError: libm") as caught:
        assert shapes.get("star").__name__ == "Star"
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the warning points at who asked
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shapes.names() == ["star"]
        assert "moon" not in shapes


def test_asking_for_a_broken_plugin_raises_its_cause(group):
    group.distribution("bad", {"moon": "Moon"}, BROKEN)
    shapes = group.registry()
    with pytest.warns(RuntimeWarning):
        shapes.load()
    for _ in range(2):
        with pytest.raises(
            PluginError, match=r"shape 'moon' of 'bad' cannot be used: OSError: libmoon.so is missing; repair"
        ) as caught:
            shapes.get("moon")
        assert isinstance(caught.value.__cause__, OSError)
        assert isinstance(caught.value, ImportError)


def test_warnings_as_errors_do_not_lose_the_other_plugins(group):
    group.distribution("bad", {"moon": "Moon"}, BROKEN)
    group.distribution("sky", {"star": "Star"}, SOUND)
    shapes = group.registry()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            shapes.load()
        assert shapes.names() == ["star"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("class Moon: pass\n", "must be a class that derives from Shape"),
        ("def Moon(): pass\n", "must be a class that derives from Shape"),
        ("Sun = 1\n", "no attribute 'Moon'"),
        ("def broken(:\n", "invalid syntax"),
        ("import sys\nsys.exit('no licence')\n", "SystemExit: no licence"),
        ("raise NotImplementedError\n", "cannot be used: NotImplementedError($|;)"),
    ],
)
def test_plugins_that_break_the_contract_are_broken(group, source, reason):
    group.distribution("bad", {"moon": "Moon"}, source)
    shapes = group.registry()
    with pytest.warns(RuntimeWarning, match=reason):
        shapes.load()
    with pytest.raises(PluginError, match=reason):
        shapes.get("moon")


def test_plugin_cannot_take_a_name_of_ours(group):
    group.distribution("sky", {"round": "Star"}, SOUND)
    shapes = group.registry()

    @shapes.register("round")
    class Round(Shape):
        pass

    with pytest.warns(RuntimeWarning, match="'round' is taken by"):
        shapes.load()
    assert shapes.get("round") is Round


def test_plugins_are_looked_for_once(group, monkeypatch):
    import cellvit.plugins.registry as module

    asked = []
    monkeypatch.setattr(module, "entry_points", lambda group: asked.append(group) or [])
    shapes = group.registry()
    shapes.load()
    shapes.names()
    assert "x" not in shapes
    with pytest.raises(UnknownPluginError):
        shapes.get("x")
    assert asked == [group.name]


def test_entries_say_what_each_name_is_and_where_it_comes_from(group):
    group.distribution("sky", {"star": "Star"}, SOUND, version="2.5")
    group.distribution("bad", {"moon": "Moon"}, "raise OSError('one\\n  two')\n")
    shapes = group.registry()

    @shapes.register("round")
    class Round(Shape):
        pass

    with pytest.warns(RuntimeWarning):
        moon, own, star = shapes.entries()
    assert (own.name, own.cls, own.origin, own.version, own.error) == ("round", Round, __name__, None, None)
    assert own.class_path == f"{__name__}.{Round.__qualname__}"
    assert (star.origin, star.version, star.class_path) == ("sky", "2.5", f"{group.name}_sky.Star")
    assert star.cls is shapes.get("star")
    assert (moon.name, moon.cls, moon.origin, moon.version) == ("moon", None, "bad", "1.0")
    assert moon.class_path == f"{group.name}_bad.Moon"
    assert isinstance(moon.error, OSError)
    assert (moon.reason, star.reason) == ("OSError: one two", "")


@pytest.mark.parametrize("order", [("alpha", "beta"), ("beta", "alpha")])
def test_of_two_packages_that_claim_a_name_the_first_by_alphabet_gets_it(group, monkeypatch, order):
    """Folders are not listed in the same order on every machine."""
    import cellvit.plugins.registry as module

    for name in order:
        group.distribution(name, {"star": "Star"}, SOUND)
    shapes = group.registry()
    found = list(module.entry_points(group=group.name))
    found.sort(key=lambda point: order.index(point.dist.name))
    monkeypatch.setattr(module, "entry_points", lambda group: found)
    reason = f"'star' of 'beta' cannot be used: shape name 'star' is taken by {group.name}_alpha.Star of 'alpha'"
    with pytest.warns(RuntimeWarning, match=reason):
        shapes.load()
    assert shapes.origin("star") == "alpha"
    assert [(entry.origin, entry.error is None) for entry in shapes.entries()] == [("alpha", True), ("beta", False)]


def test_two_distributions_that_declare_one_class_do_not_collide(group):
    group.distribution("alpha", {"star": "Star"}, SOUND)
    group.distribution("beta", {"star": "Star"}, f"from {group.name}_alpha import Star\n")
    (entry,) = group.registry().entries()  # a warning would be an error here
    assert entry.class_path == f"{group.name}_alpha.Star"
