"""Templates that would take all time or memory: one sentence each, and the next request works."""

import resource

import pytest

from diffusiongemma.core.errors import CheckpointError, DiffusionGemmaError, InputError
from diffusiongemma.dialog.cage import Limits
from diffusiongemma.dialog.template import Template

SMALL = Limits(seconds=0.2, megabytes=128)
GIVEN = {"a": "a", "n": 10**9, "messages": [{"role": "user", "content": "Hi"}], "word": "fine"}

WIDE = "{% set r = range(99999) | list %}"
NAMES = "{% set ns = namespace(x='ab', l=[1], d={}) %}"
BIG = "{% set big = range(99999) | list * 50 %}"


def doubled(name: str, again: str, times: int = 27) -> str:
    """A namespace's value made twice as large so many times."""
    return f"{NAMES}{{% for i in range({times}) %}}{{% set ns.{name} = {again} %}}{{% endfor %}}"


# Evaluated while the template is compiled, where jinja2 folds constants.
FOLDED = [
    "{{ 'a' | indent(1000000000, true) }}",
    "{{ 'a' | center(1000000000) }}",
    "{{ 'a' * 1000000000 }}",
    "{{ [1] * 1000000000 }}",
    "{{ 10 ** 100000000 }}",
    "{{ 7 ** (7 ** 9) % 10 }}",
    "{{ (10 ** 4000000) | string }}",
    "{{ '%d' % (10 ** 4000000) }}",
    "{{ (1e308 | int) ** 99999 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%1000000000s' | format('a') }}",
    "{{ 'a' | replace('a', 'a' * 1000000) | replace('a', 'a' * 1000000) }}",
    "{{ [1] | tojson(indent=1000000000) }}",
    "{{ ('a b ' * 20000000) | wordcount }}",
    "{{ ('a ' * 9000000) | wordwrap(1) }}",
    "{{ ('www.a.de ' * 3000000) | urlize }}",
    "{{ ('a<b> ' * 9000000) | striptags | title }}",
    "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}",
    "{{ " + "-" * 9999 + "1 }}",
    "{% if a %}" * 999 + "{% endif %}" * 999,
    "{{ " + "[" * 9999 + "]" * 9999 + " }}",
]

# One call that makes a long text of a short one.
LONG = [
    "{{ a.ljust(n) }}",
    "{{ a.rjust(n) }}",
    "{{ a.zfill(n) }}",
    "{{ a.center(n) }}",
    "{{ '\\t'.expandtabs(n) }}",
    "{{ '{:1000000000}'.format(a) }}",
    "{{ '{:{}}'.format(a, n) }}",
    "{{ '{0:>{1}}'.format(a, n) }}",
    "{{ '%*d' % (n, 1) }}",
    "{{ '%.*f' % (n, 0.5) }}",
    "{{ a | indent(n, true) }}",
    "{{ a | center(n) }}",
    "{{ a | format | indent(n, first=true) }}",
    "{{ messages | tojson(indent=n) }}",
    "{{ a * n }}",
    "{{ n * [a] }}",
    "{{ (a * 1000000).replace('a', a * 1000000) }}",
    "{{ (a * 1000000) | replace('a', a * 1000000) }}",
    "{{ (a * 1000000).join(range(99999) | map('string')) }}",
    "{{ range(99999) | join(a * 100000) }}",
    "{{ (a * 30000000).split('') | list }}{{ (a * 30000000).split(a) }}",
    "{{ (a * 30000000) | list }}",
    "{{ (a * 99000000).encode('utf-16') }}",
    "{{ (a * 40000000).title() ~ (a * 40000000).upper() ~ (a * 40000000).swapcase() }}",
    "{{ strftime_now('%A' ~ '%A' * (n // 25)) }}",
    "{% filter replace('a', a * 1000000) %}{{ a * 100000 }}{% endfilter %}",
    "{{ raise_exception(a * n) }}",
    "{{ messages[a * n] }}",
]

# Little by little, in loops, macros and blocks.
GROWING = [
    doubled("x", "ns.x + ns.x", 99),
    doubled("x", "ns.x ~ ns.x", 99),
    doubled("x", "ns.x * 2", 99),
    doubled("x", "[ns.x, ns.x] | join", 99),
    doubled("x", "'%s%s' % (ns.x, ns.x)", 99),
    doubled("x", "'{0}{0}'.format(ns.x)", 99),
    doubled("l", "ns.l + ns.l") + "{{ ns.l }}",
    doubled("l", "ns.l + ns.l") + "{{ ns.l | tojson }}",
    doubled("l", "[ns.l, ns.l]") + "{{ ns.l }}",
    doubled("l", "[ns.l, ns.l]") + "{{ ns.l | tojson }}",
    doubled("l", "[ns.l, ns.l]") + "{{ ns.l | pprint }}",
    doubled("l", "[ns.l, ns.l]") + "{{ ns.l == (ns.l | string) }}",
    doubled("d", "dict(a=ns.d, b=ns.d)") + "{{ ns.d }}",
    "{% set b = a * 100000 %}{% set x %}{% for i in range(99999) %}{{ b }}{% endfor %}{% endset %}",
    "{% macro f(x, n) %}{% if n %}{{ f(x ~ x, n - 1) }}{% endif %}{% endmacro %}{{ f(a, 99) }}",
    "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f() %}" * 30
    + "{{ a }}"
    + "{% endcall %}" * 30,
    "{% set b = a * 1000000 %}{% for i in range(99999) %}{{ b }}{% endfor %}",
    f"{WIDE}{{% for x in r %}}{{% for y in r %}}x{{% endfor %}}{{% endfor %}}",
]

# Work without end, which makes nothing.
ENDLESS = [
    f"{WIDE}{{% for x in r %}}{{% for y in r %}}{{% endfor %}}{{% endfor %}}",
    f"{WIDE}{{% for _tick in [''.strip] %}}{{% for x in r %}}{{% for y in r %}}{{% endfor %}}"
    "{% endfor %}{% endfor %}",
    f"{WIDE}{{% for x in r %}}{{% for y in r %}}{{{{ '' }}}}{{% endfor %}}{{% endfor %}}",
    f"{WIDE}{{{{ r | map('string') | map('length') | sum }}}}" * 999,
    f"{WIDE}{{% for x in r if x in r %}}{{% endfor %}}" * 99,
    f"{WIDE}{{% for x in r %}}{{% set y = r | sort | unique | list %}}{{% endfor %}}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for x in [[]] recursive %}{{ loop([[]]) }}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    f"{BIG}{{{{ big | groupby('x') }}}}",
    f"{BIG}{{{{ big | pprint }}}}",
    f"{BIG}{{{{ big | map('string') | sort | unique | batch(1) | map('join') | list }}}}",
    "{{ ((a ~ ' b ') * 20000000) | wordcount }}",
    "{{ ((a ~ ' ') * 9000000) | wordwrap(1) }}",
    "{{ (('www.a.de ' ~ a) * 3000000) | urlize }}",
    "{{ ((a ~ '<b> ') * 9000000) | striptags | title }}",
    "{{ n ** n }}",
    "{{ (n ** 99999) ** 99 % 7 }}",
    "{{ (n ** 400000) | string }}",
    "{{ '%d' % (n ** 400000) }}",
]


def seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ends_in_a_sentence(template: Template) -> None:
    before = seconds_of_children()
    with pytest.raises((InputError, CheckpointError)) as caught:
        template.render(GIVEN | {"bomb": True})
    assert isinstance(caught.value, DiffusionGemmaError)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    # Far over the limit, as a slow machine needs more to start a process.
    assert seconds_of_children() - before < 5


@pytest.mark.parametrize("bomb", [*LONG, *GROWING, *ENDLESS])
def test_a_bomb_that_goes_off_when_rendered(bomb: str) -> None:
    template = Template("{% if bomb %}" + bomb + "{% endif %}{{ word }}", limits=SMALL)
    ends_in_a_sentence(template)
    assert template.render(GIVEN) == "fine"


@pytest.mark.parametrize("bomb", FOLDED)
def test_a_bomb_that_goes_off_when_compiled(bomb: str) -> None:
    ends_in_a_sentence(Template(bomb, limits=SMALL))
    assert Template("{{ word }}", limits=SMALL).render(GIVEN) == "fine"


def test_the_usual_limit_is_a_second_of_processor_time() -> None:
    with pytest.raises(CheckpointError, match=r"was stopped at 1\.0 seconds of processor time; ch"):
        Template(ENDLESS[0]).render(GIVEN)


@pytest.mark.parametrize(
    ("bomb", "limit"),
    [
        (LONG[0], "128 MB of memory"),
        (GROWING[1], "128 MB of memory"),
        (ENDLESS[0], r"0\.2 seconds of processor time"),
        (GROWING[-1], r"26\d{4} characters"),
    ],
)
def test_the_limit_is_named(bomb: str, limit: str) -> None:
    with pytest.raises(CheckpointError, match=f"the chat template was stopped at {limit}; check"):
        Template(bomb, limits=SMALL).render(GIVEN)


def test_a_source_as_long_as_no_template() -> None:
    with pytest.raises(CheckpointError, match="has 262145 characters, and at most 262144 are"):
        Template("a" * 262145)
