"""What a pattern matches, what its replacement becomes, and how a place is found."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from faults import Fault
from patterns import Change, Source, filled, matches, parsed


def changed(pattern: str, replacement: str, text: str, *context: str) -> list[str]:
    """Return the changed text of each place."""
    places = Change(pattern, replacement, context).places([Source.of(Path("some.py"), text)])
    return [text for _, _, text in places]


def is_match(pattern: str, text: str) -> bool:
    return any(True for _ in matches(parsed(pattern), parsed(text), {}))


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("$a + $b", "x + y", True),
        ("$a + $b", "x + x", True),
        ("$a + $b", "x - y", False),
        ("$a + $b", "x + 1", False),
        ("$a + $b", "x + y.z", False),
        ("$a - $a", "x - x", True),
        ("$a - $a", "x - y", False),
        ("torch.$a($b)", "torch.where(x)", True),
        ("torch.where($b)", "torch.sum(x)", False),
        ("$f($x, dim=-1)", "g(y, dim=-1)", True),
        ("$f($x, dim=-1)", "g(y, axis=-1)", False),
        ("$f($k=$v)", "g(mask=x)", True),
        ("$a.$a", "x.y", True),  # a local and a field are renamed apart
        ("$a.$b + $a.$b", "x.y + x.z", False),
        ("$a == 'k2'", "x == 'k3'", False),
        ("$a['$key']", "x['seed']", True),
        ("$a['$key']", "x[0]", False),
        ("$a + 1", "x + 1.0", False),
        ("$a + 1", "x + True", False),
        ("$a[:, $b:]", "x[:, y:]", True),
        ("$a[:, $b:]", "x[:, y:z]", False),
        ("$a = $b", "x = y", True),
        ("$a = $b", "x += y", False),
        ("lambda $a: -$b[$a]", "lambda i: -x[i]", True),
        ("lambda $a: -$b[$a]", "lambda i: -x[j]", False),
    ],
)
def test_a_metavariable_is_one_identifier(pattern: str, text: str, expected: bool) -> None:
    assert is_match(pattern, text) is expected


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("f($...rest)", "f()", True),
        ("f($...rest)", "f(1, x.y, g(2))", True),
        ("f($...rest)", "f(1, key=2)", False),
        ("f(**$...rest)", "f(key=2, other=3)", True),
        ("f(**$...before, key=$k, **$...after)", "f(a=1, key=x, b=2)", True),
        ("f(**$...before, key=$k, **$...after)", "f(a=1, b=2)", False),
        ("f($...a, 0, $...a)", "f(x, 0, x)", True),
        ("f($...a, 0, $...a)", "f(x, 0, y)", False),
        ("return $...value", "return x + 1", True),
        ("return $...value", "return", False),
        ("$...before and $x < 0 and $...after", "a and b.c and y < 0", True),
        (
            "def $f(self, $...parameters):\n    $...body\n    return $x",
            "def g(self, a: int):\n    a += 1\n    return a",
            True,
        ),
        ("def $f(self, $...parameters):\n    $...body\n    return $x", "def g(self, a: int):\n    return a + 1", False),
    ],
)
def test_several_nodes_have_one_metavariable(pattern: str, text: str, expected: bool) -> None:
    assert is_match(pattern, text) is expected


def test_a_replacement_has_what_the_metavariables_stand_for() -> None:
    (bound,) = matches(parsed("$f($a, $...rest, $a=$a.$a)"), parsed("g(x, 1, y + 2, key=x.field)"), {})
    new = filled(parsed("$a.$a($...rest, $f, $a=0)"), bound)
    assert ast.unparse(ast.fix_missing_locations(new)) == "x.field(1, y + 2, g, key=0)"


def test_a_replacement_may_not_use_what_no_pattern_has() -> None:
    with pytest.raises(ValueError, match=r"\$c is in the replacement, but in no pattern"):
        changed("$a + $b", "$a + $c", "x + y")
    assert changed("$a + $b", "$a + $c", "def f(z):\n    return x + y\n    print(z)", "print($c)") == [
        "def f(z):\n    return (x + z)\n    print(z)"
    ]


def test_nothing_but_the_place_changes() -> None:
    text = "# häufig 'ö'\nif  x :\n    'ü'; y = (a+b) * c  # comment\n"
    assert changed("$a + $b", "$b - $a", text) == [text.replace("(a+b)", "((b - a))")]


def test_a_statement_is_indented_as_the_one_in_its_place() -> None:
    text = "def f():\n    y = 1\n    return y\n"
    assert changed("$y = 1", "if $y:\n    $y = 2", text) == [text.replace("y = 1", "if y:\n        y = 2")]


def test_a_statement_may_take_the_place_of_a_call() -> None:
    assert changed("$f($x)", "pass", "g(y)\nz = g(y)") == ["pass\nz = g(y)"]


def test_decorators_are_of_the_function_that_is_replaced() -> None:
    text = "@once\ndef f():\n    return 1\n"
    replaced = changed("@once\ndef $f():\n    $...body", "@once\ndef $f():\n    return 2", text)
    assert replaced == ["@once\ndef f():\n    return 2\n"]


def test_the_context_is_in_the_top_level_function_or_class_around_the_place() -> None:
    text = "class A:\n    def f(x):\n        return x + 1\n    def g(x):\n        print(x)\n\ndef h(x):\n    return x + 1\n"
    assert len(changed("$x + 1", "$x", text)) == 2
    assert changed("$x + 1", "$x", text, "print($x)") == [text.replace("x + 1", "(x)", 1)]
    assert changed("$x + 1", "$x", text, "print($x, $x)") == []
    assert changed("$x + 1", "$x", text.replace("print(x)", "print(y)"), "print($x)") == []


def test_a_place_with_two_results_counts_twice_and_with_one_result_once() -> None:
    text = "def f(x, y):\n    print(x)\n    print(y)\n    return 1\n"
    assert len(changed("return 1", "return $x", text, "print($x)")) == 2
    assert len(changed("return 1", "return 2", text, "print($x)")) == 1


def test_a_place_that_is_not_there_exactly_once_is_refused() -> None:
    fault = Fault("group", "a name", Change("$a + 1", "$a"), ())
    assert fault.put_into([Source.of(Path("some.py"), "y = x + 1")]) == (Path("some.py"), "y = (x)")
    for text, places in (
        ("y = x", "0 times, not once"),
        ("y = x + 1\nz = y + 1", "2 times, not once, some.py:1, some.py:2"),
    ):
        with pytest.raises(ValueError, match=rf"group: a name: '\$a \+ 1' is found {places}"):
            fault.put_into([Source.of(Path("some.py"), text)])


@pytest.mark.parametrize("pattern", ["$a +", "$a; $b", ""])
def test_a_pattern_that_is_not_python_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="not one expression or statement of Python"):
        parsed(pattern)
