"""Advice in errors can be followed: what a message names exists. Whether it helps is read by a person."""

import re

from dimvl.bootstrap.config import BootstrapConfig
from dimvl.concepts.config import ConceptConfig
from dimvl.config.reading import all_keys
from dimvl.demo.config import DemoConfig
from dimvl.tasks import CONFIGS
from tests.test_docs import COMMANDS, ROOT
from tools.list_errors import messages

MESSAGES = list(messages())
IN_CONFIGURATIONS = "|".join(sorted({name for kind in CONFIGS.values() for name in kind.model_fields}))
KEY = re.compile(rf"(?<![\w./-])(?:{IN_CONFIGURATIONS})\.[a-z_]+(?:\.[a-z_]+)*(?![\w(])")
RULES = re.compile(r"dimvl/(config|tasks/\w+/config)\b")
FILES = (".json", ".zip", ".jsonl", ".safetensors", ".yaml", ".png", ".npy", ".bin")


def commands(group, prefix=""):
    for name, command in group.commands.items():
        yield f"{prefix}{name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")


ALL = dict(commands(COMMANDS))
OPTIONS = {option for command in ALL.values() for parameter in command.params for option in parameter.opts}
OPTIONS |= {option for parameter in COMMANDS.params for option in parameter.opts}
OPTIONS |= {"--master_port", "--nproc_per_node", "--num_gpus"}  # of launchers


KEYS = {key for kind in (*CONFIGS.values(), DemoConfig, ConceptConfig, BootstrapConfig) for key in all_keys(kind)}


def test_every_message_ends_with_a_remedy():
    for place, text in MESSAGES:
        # A rule of a configuration follows "KEY is VALUE: " and may be a remedy alone; other messages bring their own.
        whole = not RULES.match(place) and not text.endswith(("{error}", "{error.read_text()}", "{problem}"))
        assert re.search(r"; \S", text) or not whole, f"{place}: what can be done about it? {text}"


def test_options_keys_commands_and_pages_that_a_message_names_exist():
    for place, text in MESSAGES:
        plain = re.sub(r"\{[^}]*\}", "X", text)
        options = set(re.findall(r"(?<!\w)--[a-z][\w-]*", plain))
        names = {name for name in KEY.findall(plain) if not name.endswith(FILES)}
        keys = {"deepspeed.options" if name.startswith("deepspeed.options") else name for name in names}
        unknown = options - OPTIONS | keys - KEYS | set(re.findall(r"`dimvl ([a-z]+)", plain)) - ALL.keys()
        pages = [page for page in re.findall(r"docs/[\w-]+\.md", plain) if not (ROOT / page).exists()]
        assert not unknown and not pages, f"{place}: {sorted(unknown)} {pages} {text}"
    assert len(MESSAGES) > 300
