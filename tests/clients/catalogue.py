"""The clients that `make test-clients` runs: what each is, and how it is pointed at Overnight.

Each has a folder beside this file with its exact version, and a program, `flow.py` or `flow.mjs`,
written the way its own documentation shows.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Client:
    """One client. The folder of `name` holds its version, that of `runs` (or `name`) its program."""

    name: str
    title: str
    package: str
    pointed_by: str
    """How its users point it at Overnight; a cell of the table in docs/clients.md."""
    python: tuple[int, int] = (3, 11)
    """The oldest Python that it runs on."""
    runs: str = ""

    @property
    def is_node(self) -> bool:
        """Whether it is a package of npm."""
        return self.requirements.suffix == ".json"

    @property
    def requirements(self) -> Path:
        """The file that names its exact version."""
        package = FOLDER / self.name / "package.json"
        return package if package.exists() else package.with_name("requirements.txt")

    @property
    def program(self) -> Path:
        """What is run."""
        return FOLDER / (self.runs or self.name) / ("flow.mjs" if self.is_node else "flow.py")

    @property
    def version(self) -> str:
        """The version that is asked for."""
        text = self.requirements.read_text(encoding="utf-8")
        if self.is_node:
            return str(json.loads(text)["dependencies"][self.package])
        pin = re.search(rf"^{re.escape(self.package)}(?:\[\w+\])?==(\S+)$", text, re.MULTILINE)
        if pin is None:
            message = f"{self.requirements} does not pin {self.package}"
            raise ValueError(message)
        return pin[1]


_BY_ENVIRONMENT = "`OPENAI_BASE_URL` and `OPENAI_API_KEY`"

CLIENTS = (
    Client("openai_python_2", "OpenAI Python", "openai", _BY_ENVIRONMENT, runs="openai_python_3"),
    Client("openai_python_3", "OpenAI Python", "openai", _BY_ENVIRONMENT),
    Client("openai_node", "OpenAI Node", "openai", _BY_ENVIRONMENT),
    Client(
        "litellm_sdk",
        "LiteLLM SDK",
        "litellm",
        '`custom_llm_provider="openai"`, `api_base=`, `api_key=` with each call',
    ),
    Client(
        "litellm_proxy",
        "LiteLLM proxy",
        "litellm",
        "[its configuration](../tests/clients/litellm_proxy/config.yaml)",
    ),
    Client(
        "pydantic_ai",
        "Pydantic AI",
        "pydantic-ai-slim",
        "`OpenAIResponsesModel` with `OpenAIProvider(base_url=, api_key=)`",
    ),
    Client("instructor", "Instructor", "instructor", _BY_ENVIRONMENT),
    Client(
        "gpt_batch_api",
        "gpt-batch-api",
        "gpt-batch-api",
        "`client_base_url=` and `openai_api_key=`, or " + _BY_ENVIRONMENT,
        python=(3, 12),
    ),
)
