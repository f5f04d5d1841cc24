"""Templates to compare: whole ones in the manner of well-known models, small ones for each part of the language, broken and random ones."""

from __future__ import annotations

import random

# Each shows what the templates of its kind do: white space control, namespaces, filters over messages, macros, errors of their own.
WHOLE = {
    "pairs": """{%- if messages and messages[0]["role"] == "system" %}
    {%- set about = messages[0]["content"] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- set asked = rest | selectattr("role", "equalto", "user") | list %}
{#- Says no when the roles do not alternate. #}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in rest %}
    {%- if not (message.role == "tool" or message.tool_calls is defined) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in rest if message.role in ["user", "assistant"] %}
    {%- if message["role"] == "user" %}
        {%- if about is defined and message == asked[-1] %}
            {{- "[INST] " ~ about ~ "\\n\\n" ~ message["content"] ~ "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message.content + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "macros": """{% macro head(role, end="\\n\\n") %}<{{ role | upper }}>{{ end }}{% endmacro %}
{% macro say(message) -%}
    {{ head(message.role) }}{{ message.content.strip() }}
    {%- if message.content | length > 20 %} ({{ message.content | length }}){% endif %}
{%- endmacro %}
{%- for message in messages %}
    {%- if loop.index0 > 3 and not loop.last %}{% continue %}{% endif %}
    {%- if message.role == "" %}{% break %}{% endif %}
    {%- generation %}{{ say(message) }}{% endgeneration %}
{{ head(role="end", end="") }}{{ "" if loop.last else "\\n" }}
    {%- else %}
nothing
{%- endfor %}
""",
    "lines": """{{ bos_token }}
{% for message in messages %}
    {% if message['role'] == 'user' %}
<|{{ message['role'].title() }}|>
{{ message['content'] }}

    {% elif message['role'] == 'assistant' and not loop.last %}
  {{ message['content'].split('</think>')[-1].lstrip() }}{{ eos_token }}
    {% else %}
        {# nothing is known of other roles #}
        {% set known = false %}
<{{ message.role | default('unknown', true) | replace('t', 'T') }} {{ loop.index }}/{{ loop.length }} {{ known is defined }}>
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|Assistant|>
{% endif %}
""",
    "searching": """{%- set ns = namespace(last=-1, system='', found=[]) -%}
{%- for message in messages[::-1] -%}
    {%- set index = (messages | length - 1) - loop.index0 -%}
    {%- if ns.last < 0 and message.role == 'user' and not message.content.startswith('<tool') -%}
        {%- set ns.last = index -%}
    {%- endif -%}
    {%- if message.role == 'system' and message.content is string -%}
        {%- set ns.system = message.content ~ ns.system -%}
        {%- set ns.found = ns.found + [index] -%}
    {%- endif -%}
{%- endfor -%}
{{ ns.system | trim }}|{{ ns.last }}|{{ ns.found | join(',') }}|
{%- for message in messages -%}
    {%- if loop.index0 > ns.last and '</think>' in message.content -%}
        {%- set parts = message.content.split('</think>') -%}
        {{ parts[0].rstrip('\\n').split('<think>')[-1].strip() | tojson }}:{{ parts[-1] | trim | tojson }}
    {%- else -%}
        {{ message | tojson }}{{ message.items() | length }}{{ message.get('name', 'x') }}
    {%- endif -%}
    {{ '' if loop.last else ';' }}
{%- endfor -%}
""",
}

VALUES = (
    "{{ 1 }}{{ 1_000 }}{{ 1.5 }}{{ 0.001 }}{{ -2 }}{{ +3 }}{{ true }}{{ False }}{{ none }}{{ nothing }}",
    "{{ 'a' 'b' \"c\" }}{{ 'it\\'s' }}{{ \"\\t\\x41\\u00e9\\U0001f600\\\\\" }}{{ 'a\\\nb' }}",
    "{{ [1, 2][0] }}{{ [1, 2,][-1] }}{{ (1, 2)[1] }}{{ () | length }}{{ {'a': 1}['a'] }}{{ {'a': {'b': 2}}.a.b }}",
    "{{ {'items': 5}.items() | length }}{{ {'items': 5}['items'] }}{{ {'x': none}.x }}{{ [none][0] }}",
    "{{ 7 // 2 }}{{ -7 // 2 }}{{ 7 % 3 }}{{ -7 % 3 }}{{ 7 / 2 }}{{ 2 ** 10 }}{{ 2 * 3 + 1 }}{{ 1 + 2 ~ 3 }}{{ 10 - 2 - 3 }}{{ -2 ** 2 }}",
    "{{ 'ab' * 3 }}{{ 2 * 'x' }}{{ 'x' * -1 }}{{ [1] + [2] == [1, 2] }}{{ true + 1 }}",
    "{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 1 == 1.0 }}{{ 1 == true }}{{ 'a' < 'b' }}{{ 'a' < 'B' }}{{ '\uffff' < '\U00010000' }}{{ 'ab' > 'a' }}",
    "{{ 'a' in 'cat' }}{{ 'x' not in 'cat' }}{{ 1 in [1, 2] }}{{ 'a' in {'a': 1} }}{{ 1 in nothing }}{{ not 1 in [1] }}",
    "{{ 0 or 'x' }}{{ 1 and 'y' }}{{ '' and 1 }}{{ not '' }}{{ not not 1 }}{{ [] or nothing or 3 }}",
    "{{ 'a' if true else 'b' }}{{ 'a' if false }}{{ 'a' if false else 'b' if false else 'c' }}{{ ('x' if 1) is defined }}",
    "{{ messages[0].role[0] }}{{ messages[1].content[-2] }}{{ messages[1].content[1:3] }}{{ messages[1].content[::-1] }}",
    "{{ messages[1:][0].role }}{{ messages[:-1] | length }}{{ messages[5:] | length }}{{ messages[-5:2] | length }}{{ messages[::2] | length }}",
    "{{ messages[9] is defined }}{{ messages.x is defined }}{{ messages[0].x is defined }}{{ messages[0]['x'] is none }}{{ messages['0'] is defined }}",
    "{{ messages.0.role }}{{ none.x is defined }}{{ none['x'] is defined }}{{ 1[0] is defined }}{{ 'abc'.x is defined }}",
    "{{ [3, 4, 5][1:] | join('-') }}{{ [3, 4, 5][::-2] | join }}{{ [3, 4, 5][2:0:-1] | join }}{{ [1, 2][:9] | join }}{{ 'abc'[none:2] }}",
)
FILTERS = (
    "{{ ' x ' | trim }}|{{ 'xax' | trim('x') }}|{{ '\\u2003\\x1cx\\u00a0' | trim }}|{{ nothing | trim }}|{{ 5 | trim }}",
    "{{ 'aß' | upper }}{{ 'ÀΣ' | lower }}{{ 'hELLO wORLD' | capitalize }}{{ '' | capitalize }}{{ true | upper }}",
    "{{ 'a👍' | length }}{{ [1] | count }}{{ {'a': 1} | length }}{{ nothing | length }}{{ messages | length - 1 }}",
    "{{ nothing | default('d') }}{{ '' | default('d') }}{{ '' | default('d', true) }}{{ '' | d('e', boolean=true) }}{{ none | default }}{{ nothing | default }}",
    "{{ [1, 'a', none] | join(', ') }}{{ 'abc' | join('-') }}{{ [] | join }}{{ {'a': 1, 'b': 2} | join }}{{ [1, 2] | join(d='+') }}",
    "{{ {'a': [1, 2.5, true, none, 'é\"\\n\\x08\\x0c\\x7f<&']} | tojson }}{{ '/' | tojson }}{{ [] | tojson }}{{ {} | tojson(ensure_ascii=false) }}",
    "{{ [1, 2] | first }}{{ [1, 2] | last }}{{ 'ab' | first }}{{ 'ab' | last }}{{ [] | first is defined }}{{ {'k': 1} | first }}",
    "{{ 'aXbX' | replace('X', '-') }}{{ 'aXbX' | replace('X', '-', 1) }}{{ 5 | replace('5', '6') }}{{ 'a' | string }}{{ 1 | string ~ 2 }}",
    "{% for key, value in {'a': 1, 'b': 2} | items %}{{ key }}{{ value }}{% endfor %}{{ nothing | items | list | length }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | rejectattr('role', 'in', ['user']) | list | length }}",
    "{{ (messages | selectattr('content') | list)[0].role }}{{ none | selectattr('a') | list | length }}{{ messages | rejectattr('x', 'defined') | list | length }}",
    "{{ -1 | string }}{{ 'a' ~ 'b' | upper }}{{ ('a' ~ 'b') | upper }}{{ 'x' | upper | lower }}{{ [1, 2] | list | length }}",
)
TESTS = (
    "{{ x is defined }}{{ x is not defined }}{{ x is undefined }}{{ none is none }}{{ 0 is none }}{{ not x is defined }}",
    "{{ 'a' is string }}{{ 1 is string }}{{ {} is mapping }}{{ [] is mapping }}{{ [] is iterable }}{{ 1 is iterable }}{{ 'a' is iterable }}{{ x is iterable }}",
    "{{ 1 is number }}{{ 1.5 is number }}{{ true is number }}{{ '1' is number }}{{ 1 is integer }}{{ true is integer }}{{ 1.0 is float }}",
    "{{ true is true }}{{ 1 is true }}{{ false is false }}{{ 0 is false }}{{ true is boolean }}{{ 0 is boolean }}{{ [] is sequence }}{{ 1 is sequence }}",
    "{{ 1 is equalto 1 }}{{ 1 is eq(2) }}{{ 1 is ne 2 }}{{ 1 is in [1] }}{{ 'a' is in('abc') }}{{ 1 is not in [1] }}{{ 1 is sequence or 2 }}",
    "{{ 1 if x is defined else 2 }}{{ x is defined and x }}{{ raise_exception is defined }}{{ strftime_now is defined }}{{ tools is defined }}",
)
METHODS = (
    "{{ ' a '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ ' a '.lstrip() }}|{{ ' a '.rstrip() }}|{{ 'abcba'.strip('ab') }}|{{ 'a'.strip(none) }}",
    "{{ 'a b  c'.split() | join('|') }}{{ ' a '.split(' ') | length }}{{ 'a,b,c'.split(',', 1) | join('|') }}{{ ''.split() | length }}{{ ''.split(',') | length }}",
    "{{ ' a  b c '.split(none, 1) | join('|') }}|{{ 'abc'.split('x')[0] }}{{ 'a--b'.split('--')[-1] }}{{ 'a b'.split(maxsplit=0) | join('|') }}",
    "{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith('bc') }}{{ 'abc'.startswith(('x', 'a')) }}{{ 'abc'.startswith('') }}",
    "{{ 'aé'.upper() }}{{ 'AÉ'.lower() }}{{ \"it's a dAY x2y\".title() }}{{ 'hELLO'.capitalize() }}{{ 'a-b'.replace('-', '+') }}{{ ', '.join(['a', 'b']) }}",
    "{{ {'a': 1}.get('a') }}{{ {'a': 1}.get('b') }}{{ {'a': 1}.get('b', 2) }}{{ {'a': 1}.keys() | list | join }}{{ {'a': 1}.values() | join }}",
    "{% for key, value in messages[0].items() %}{{ key }}={{ value }};{% endfor %}{% for key in messages[0] %}{{ key }}{% endfor %}",
    "{{ range(3) | join }}{{ range(1, 4) | join }}{{ range(5, 0, -2) | join }}{% for i in range(2) %}{{ i }}{% endfor %}{{ range(0) | length }}",
    "{{ strftime_now('%d %b %Y %B %m %y %A %a %j %%') }}",
)
STATEMENTS = (
    "{% if 0 %}a{% elif 1 %}b{% else %}c{% endif %}{% if x %}a{% endif %}{% if 1 if 0 else 1 %}{% endif %}",
    "{% if 0 %}a{% elif 0 %}b{% elif none %}c{% else %}d{% endif %}",
    "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }},{% endfor %}",
    "{% for m in messages %}{{ loop.previtem.role }}>{{ m.role }}>{{ loop.nextitem.role if loop.nextitem is defined }};{% endfor %}",
    "{% for m in messages if m.role != 'user' %}{{ loop.index }}/{{ loop.length }}{{ m.role }}{% else %}none{% endfor %}{% for x in [] %}{% else %}empty{% endfor %}",
    "{% for x in nothing %}{% else %}empty{% endfor %}{% for c in 'a👍' %}[{{ c }}]{% endfor %}{% for x in [1, 2] if x > 5 %}x{% else %}none{% endfor %}",
    "{% for a, b in [(1, 2), [3, 4]] %}{{ a }}{{ b }}{% endfor %}{% for (a, b) in [(1, 2)] %}{{ b }}{% endfor %}",
    "{% for x in [1, 2] %}{% for y in [3, 4] %}{{ loop.index }}{{ x }}{{ y }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% for x in [1, 2, 3, 4] %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = 5 %}{{ x }}{% endfor %}{{ x }}",
    "{% set ns = namespace(n=0, s='') %}{% for i in [1, 2, 3] %}{% set ns.n = ns.n + i %}{% set ns.t = i %}{% endfor %}{{ ns.n }}{{ ns.t }}{{ ns.u is defined }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set c = 1, 2 %}{{ c | length }}{% set d = 'x' if a == 1 else 'y' %}{{ d }}{% set e = a, %}{{ e | length }}",
    "{% set block %}a {{ 1 + 1 }}{% set inner = 1 %}{% endset %}[{{ block }}]{{ inner is defined }}{% if 1 %}{% set later = 2 %}{% endif %}{{ later }}",
    "{% macro m(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=4, a=5) }}{{ m() }}{{ m(1) | length }}",
    "{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% set x = 3 %}{{ m() }}{% for x in [9] %}{{ m() }}{% endfor %}",
    "{% macro down(n) %}{{ n }}{% if n > 0 %}{{ down(n - 1) }}{% endif %}{% endmacro %}{{ down(5) }}",
    "{% macro sum(xs) %}{% set ns = namespace(t=0) %}{% for x in xs %}{% set ns.t = ns.t + x %}{% endfor %}{{ ns.t }}{% endmacro %}{{ sum([1, 2]) ~ '!' }}",
    "{% for x in [1] %}{% macro inside() %}{{ x }}{% endmacro %}{{ inside() }}{% endfor %}{{ inside is defined }}",
    "{% generation %}x{% set g = 1 %}{% endgeneration %}{{ g }}",
    "{{ messages | tojson }}{{ add_generation_prompt }}{{ bos_token }}{{ unk_token is defined }}",
    "{{ ((1, 2)) | length }}{{ (1,) | length }}",
)
SPACES = (
    "a\n", "a\n\n", "\n", "", "a\r\nb\r", " {{ 1 }} \n {{ 2 }}\n\n", "{% if 1 %}\n a\n{% endif %}\n\nb", "  {% if 1 %}\n  a\n  {% endif %}\n  b",
    "a {% if 1 %} b {% endif %} c", "a \n {%- if 1 -%} \n b \n {%- endif -%} \n c", "a\n  {%+ if 1 %}\n  b\n  {%+ endif +%}\n  c", "a\n  {% if 1 +%}\n  b{% endif %}",
    "a {{- 1 -}} b {{ 2 -}}\n c {{- 3 }} d", "a\n  {# note #}\n  b {#- x -#} c\n{# y +#}\nd {#+ z #}", "{#-#}x{# {{ 1 }} {% if %} #}y", "  \n\t {% set x = 1 %}  \n {{ x }}",
    "x  {% set x = 1 %}\ny", "{{ '}}' }}{{ {'a': {'b': 1}}['a']['b'] }}{{ '{%' }}%} }} #}", "{{ {'a':{}} | length}}{{[[1]][0][0]}}{%if 1%}x{%endif%}", "{{-1}}{{ 1 -}}  {{ -1 }}",
    "{% if 1 %}\r\n a\r\n{% endif %}\r\n", "{{\n1\n+\n2\n}}", "\u2003{% if 1 %}a{% endif %}", "a\x0b{%- if 1 -%}\x1fa{% endif %}", "{% if 1 %}{# c #}\n{% endif %}x", "{ {{ 1 }} { % #",
)  # fmt: skip
BROKEN = (
    "{{ 1", "{% if 1 %}", "{% endif %}", "{{ }}", "{% if %}{% endif %}", "{# x", "{{ 'a }}", "{{ (1 }}", "{{ 1) }}", "{{ [1 }}", "{{ a b }}", "{{ 1 + }}", "{{ | trim }}", "{{ 'a' | }}",
    "{% for x %}{% endfor %}", "{% for in [1] %}{% endfor %}", "{% set = 1 %}", "{% set x %}", "{% macro %}{% endmacro %}", "{% if 1 %}{% endfor %}", "{{ x is }}", "{{ a. }}", "{{ f(a=1, 2) }}",
    "{{ $ }}", "{% %}", "{% 1 %}", "{{ {1} }}", "{{ 'a' 1 }}", "{% break %}", "{{ a[ }}", "{{ a[] }}",
    "{{ 1 + 'a' }}", "{{ 'a' + 1 }}", "{{ nothing + 'a' }}", "{{ 'a' + nothing }}", "{{ 'a' + none }}", "{{ none < 1 }}", "{{ 'a' < 1 }}", "{{ nothing.x }}", "{{ nothing['x'] }}", "{{ nothing[1:] }}", "{{ nothing() }}",
    "{{ messages.x.y }}", "{{ 1 // 0 }}", "{{ 1 % 0 }}", "{{ 1 / 0 }}", "{{ 1 in 5 }}", "{{ 1 in 'a' }}", "{{ 5 | length }}", "{{ none | length }}", "{{ 5 | first }}", "{% for x in 5 %}{% endfor %}",
    "{% for a, b in [1] %}{% endfor %}", "{% for a, b in [[1]] %}{% endfor %}", "{% set x.y = 1 %}", "{% set x = 1 %}{% set x.y = 1 %}", "{{ messages[::0] }}", "{{ messages['a':] }}", "{{ 'a'.split('') }}", "{{ 'a'.startswith(1) }}",
    "{{ ','.join([1]) }}", "{{ 'a'.strip(1) }}", "{{ 'a'.upper(1) }}", "{{ 'a'.replace('b') }}", "{{ range() }}", "{{ range('a') }}", "{{ range(1, 2, 0) }}", "{{ 'a'() }}", "{{ raise_exception() }}", "{{ -'a' }}", "{{ -nothing }}",
    "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{{ none.items() }}", "{% for x in 5 | items %}{% endfor %}", "{{ 'a' | trim('b', 'c') }}", "{{ 1 is eq }}", "{{ {'a': 1}.get() }}",
)  # fmt: skip
SMALL = (
    *VALUES,
    *FILTERS,
    *TESTS,
    *METHODS,
    *STATEMENTS,
    *SPACES,
    *BROKEN,
    "{{ raise_exception('No  \\n such thing: é') }}",
)

UNKNOWN = (
    ("{% include 'x' %}", "the tag 'include' (line 1)"),
    ("\n{% raw %}{% endraw %}", "the tag 'raw' (line 2)"),
    ("{% for x in [] recursive %}{% endfor %}", "a recursive loop"),
    ("{% set x | upper %}{% endset %}", "a filter on a block that is set"),
    ("{{ 'a' | indent }}", "the filter 'indent'"),
    ("{{ 1 is odd }}", "the test 'odd'"),
    ("{{ messages | selectattr('role', 'odd') | list }}", "the test 'odd'"),
    ("{{ 'a'.encode() }}", "the method 'encode'"),
    ("{{ messages.append(1) }}", "the method 'append'"),
    ("{{ cycler(1) }}", "the name 'cycler'"),
    ("{{ range(*[1]) }}", "the argument '*' of a call"),
    ("{{ {} | tojson(indent=2) }}", "the argument 'indent' of the filter 'tojson'"),
    ("{{ [1] }}", "a list as text"),
    ("{{ messages[0] }}", "a mapping as text"),
    ("{{ 'a' % 1 }}", "the format of a text by '%'"),
    ("{{ 9223372036854775807 + 1 }}", "a number beyond 64 bits"),
    ("{{ 99999999999999999999 }}", "the number 99999999999999999999 beyond 64 bits"),
    ("{{ strftime_now('%d%Q') }}", "'%Q' of a date"),
    ("{{ '\\N{BULLET}' }}", "the escape '\\N'"),
)
HOSTILE = (
    ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "does not end within"),
    ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nested deeper than"),
    ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested deeper than"),
    ("{{ " + "not " * 5000 + "1 }}", "nested deeper than"),
    ("{{ " + "-" * 5000 + "1 }}", "nested deeper than"),
    ("{{ 1" + " + 1" * 5000 + " }}", "nested deeper than"),
    ("{{ x" + ".x" * 5000 + " }}", "nested deeper than"),
    ("{% if 1 %}" * 5000 + "{% endif %}" * 5000, "nested deeper than"),
    ("{{ 1" + " if 1 else 1" * 5000 + " }}", "nested deeper than"),
    ("{{ 'x' * 10000000000 }}", "a text is longer than"),
    ("{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "a text is longer than"),
    ("{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}", "a list is longer than"),
    ("{% set x = 'x' * 999999 %}{% for i in range(99999) %}{{ 'y' in x }}{{ x == x ~ 'y' }}{% endfor %}", "does not end within"),
    ("{% for i in range(99999) %}{% set x = range(99999) %}{% endfor %}", "does not end within"),
    ("{% set x = 'x' * 2000000 %}{{ x[0] }}", "a list is longer than"),
    ("{% set x = 'x' * 2000000 %}{{ x.split('x') }}", "a text to split is longer than"),
    ("{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}", "a list is longer than"),
    ("{% set x = 'x' * 1999999 %}{{ x }}{{ x }}", "the text is longer than"),
    ("{{ ('x' * 99999) | replace('x', 'y' * 99999) }}", "a text is longer than"),
    ("{% set x = 'x' * 1999999 %}{{ [x, x, x] | join }}", "a text is longer than"),
    ("{{ range(9999999) | length }}", "a range is longer than"),
    ("{% set ns = namespace(x=['x' * 999999]) %}{% for i in range(19) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | join }}", "a text is longer than"),
    ("{% set ns = namespace(x=['x' * 999999]) %}{% for i in range(19) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ''.join(ns.x) }}", "a text is longer than"),
    ("{% set ns = namespace(x=['x' * 999999]) %}{% for i in range(19) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | tojson }}", "a text is longer than"),
    ("{% set ns = namespace(x=[1]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}", "nested deeper than"),
    ("{% set ns = namespace(x=[1]) %}{% for i in range(18) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{% set x = ns.x %}{% for i in range(99999) %}{{ x == x }}{% endfor %}", "does not end within"),
)  # fmt: skip

ATOMS = ("0", "1", "-3", "2.5", "'a'", "' Bc '", "''", "'é👍x'", "true", "none", "nothing", "[]", "[1, 'a']", "['b', none, 2]", "{'a': 1}", "{}", "messages", "messages[0]", "m", "m.role", "n", "messages[-1].content")  # fmt: skip
POSTFIX = ("[0]", "[-1]", "['role']", ".a", ".content", ".strip()", ".split()", ".upper()", ".get('a')", ".startswith('a')", ".items()", "['a']")  # fmt: skip
SLICES = (
    "messages[1:]",
    "messages[:-1]",
    "messages[::-1]",
    "m.role[1:]",
    "messages[-1].content[:-1]",
    "n[1:]",
    "m[:1]",
)
PIPES = (" | trim", " | length", " | upper", " | first", " | last", " | join('-')", " | default('d')", " | default('d', true)", " | tojson", " | string", " | list", " | replace('a', 'b')")  # fmt: skip
CHECKS = ("defined", "none", "string", "mapping", "iterable", "number", "true", "false", "eq 1", "not defined", "sequence", "in [1, 'a']")  # fmt: skip
OPERATORS = ("+", "-", "*", "~", "==", "!=", "<", "<=", ">", "in", "not in", "and", "or", "//", "%")


def random_expression(rng: random.Random, depth: int) -> str:
    kind = rng.random()
    if depth == 0 or kind < 0.15:
        return rng.choice(ATOMS + SLICES)
    inner = random_expression(rng, depth - 1)
    if kind < 0.35:
        return inner + rng.choice(POSTFIX)
    if kind < 0.5:
        return inner + rng.choice(PIPES)
    if kind < 0.6:
        return f"{inner} is {rng.choice(CHECKS)}"
    if kind < 0.65:
        return f"not {inner}"
    other = random_expression(rng, depth - 1)
    if kind < 0.72:
        return f"({inner} if {other} else {random_expression(rng, depth - 1)})"
    if kind < 0.85:
        return f"({inner} {rng.choice(OPERATORS)} {other})"
    return f"{inner} {rng.choice(OPERATORS)} {other}"


def random_tag(rng: random.Random, inside: str) -> str:
    begin, end = rng.choice(("{%", "{%", "{%-", "{%+")), rng.choice(("%}", "%}", "-%}", "+%}"))
    return f"{begin} {inside} {end}"


def random_template(rng: random.Random, depth: int = 2) -> str:
    """Statements with random expressions and white space between them."""
    parts = []
    for _ in range(rng.randrange(1, 3)):
        parts.append(rng.choice(("", " ", "\n", "\n  ", "x", " \n\n y\n", "\t")))
        expression = random_expression(rng, rng.choice((0, 1, 1, 2)))
        kind = rng.random()
        if depth == 0 or kind < 0.5:
            parts.append(f"{rng.choice(('{{', '{{', '{{-'))} {expression} {rng.choice(('}}', '}}', '-}}'))}")
        elif kind < 0.65:
            parts.append(random_tag(rng, f"set n = {expression}"))
        elif kind < 0.8:
            inner = random_template(rng, depth - 1)
            otherwise = random_tag(rng, "else") + random_template(rng, depth - 1) if rng.random() < 0.5 else ""
            parts.append(random_tag(rng, f"if {expression}") + inner + otherwise + random_tag(rng, "endif"))
        else:
            of = rng.choice(("messages", "messages", "[1, 'a', none]", "messages[1:]", f"({expression})"))
            inner = random_template(rng, depth - 1) + rng.choice(("", "{{ loop.index }}", "{{ loop.last }}"))
            parts.append(random_tag(rng, f"for m in {of}") + inner + random_tag(rng, "endfor"))
    return "".join(parts) + rng.choice(("", "\n", " "))
