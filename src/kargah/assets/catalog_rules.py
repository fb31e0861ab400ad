"""What a good catalog entry says beyond its form: a licence, languages and tasks by the names everybody knows.

These rules are for `kargah catalog check` and not for the start: a server runs with a licence nobody has heard of.
Two-letter languages are looked up (ISO 639-1), three-letter ones (ISO 639-2 and -3) are held to their form alone.
"""

import re
from collections.abc import Iterator

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from kargah.assets.catalog import Entry, Problem
from kargah.ground.problems import problems_of
from kargah.text.languages import Language
from kargah.text.messages import has, translate


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TASKS = frozenset(
    {
        *("text-classification", "natural-language-inference", "token-classification", "question-answering"),
        *("fill-mask", "sentence-similarity", "feature-extraction", "chat", "text-generation", "summarization"),
        *("translation", "text2text-generation", "zero-shot-classification", "text-ranking", "multiple-choice"),
        "table-question-answering",
    }
)
"""The hub's names of tasks on text, and `chat` for a model that was taught to converse."""

HUB_LICENCES = _words(
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 "
    "bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc "
    "cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 "
    "cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 "
    "cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 "
    "eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c "
    "ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql "
    "ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 "
    "llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown other"
)
"""The hub's own names of licences (https://huggingface.co/docs/hub/repositories-licenses)."""

ISO_639_1 = _words(
    "aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el "
    "en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it "
    "iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt "
    "my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl "
    "sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo "
    "za zh zu"
)

# RFC 5646 2.1: language, extended language, script, region, variants, extensions, private use.
_TAG = re.compile(
    r"([a-z]{2,3})(-[a-z]{3}){0,3}(-[a-z]{4})?(-([a-z]{2}|[0-9]{3}))?(-([a-z0-9]{5,8}|[0-9][a-z0-9]{3}))*"
    r"(-[0-9a-wyz](-[a-z0-9]{2,8})+)*(-x(-[a-z0-9]{1,8})+)?",
    re.IGNORECASE,
)


def examine_rules(entry: Entry, file: str) -> Iterator[Problem]:
    """What an entry of good form gets wrong."""
    if entry.licence is not None and not is_licence(entry.licence):
        yield _problem(entry, file, "licence", "licence", "neither an SPDX id nor a licence of the hub", entry.licence)
    for number, language in enumerate(entry.languages):
        if not is_language(language):
            yield _problem(entry, file, f"languages.{number}", "language", "no BCP 47 or ISO 639 code", language)
    for number, task in enumerate(entry.tasks):
        if task not in TASKS:
            yield _problem(entry, file, f"tasks.{number}", "task", "no known task", task)
    for name, values in (("languages", entry.languages), ("tasks", entry.tasks)):
        for value in sorted({value for value in values if values.count(value) > 1}):
            yield _problem(entry, file, name, "repeated", "stands here twice", value)


def is_licence(text: str) -> bool:
    """Whether `text` is an SPDX id (`LicenseRef-…` too, no expression of several) or one of the hub's names."""
    if text.lower() in HUB_LICENCES:
        return True
    if not re.fullmatch(r"[A-Za-z0-9.+-]+", text):
        return False
    try:
        canonicalize_license_expression(text)
    except InvalidLicenseExpression:
        return False
    return True


def is_language(text: str) -> bool:
    """Whether `text` is a language tag of good form whose language, if of two letters, exists."""
    match = _TAG.fullmatch(text)
    return match is not None and (len(match[1]) == 3 or match[1].lower() in ISO_639_1)


def sentence(problem: Problem, language: Language) -> str:
    """What is wrong, for a person."""
    key = f"catalogCheck.problem.{problem.kind}"
    if has(key, language):
        return translate(key, language, text=problem.text, **problem.params)
    # What pydantic found is said as it is said of a request's body.
    known = problems_of([{"loc": (problem.field,), "type": problem.kind, "ctx": problem.params}], skip=0).problems[0]
    if known[1] == "problem.invalid":
        return translate("catalogCheck.problem.other", language, text=problem.text)
    return translate(known[1], language, **known[2])


def _problem(entry: Entry, file: str, field: str, kind: str, text: str, value: str) -> Problem:
    return Problem(file, entry.id, field, kind, f"{value!r}: {text}", {"value": value})
