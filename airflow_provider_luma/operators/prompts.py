# SPDX-License-Identifier: Apache-2.0
"""Prompts that are in files beside the DAG, and reviewed like code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_provider_luma.compat import AirflowFailException
from airflow_provider_luma.core.validation import PROMPT_FILE_EXTENSIONS, check_prompt
from airflow_provider_luma.exceptions import LumaValidationError
from airflow_provider_luma.operators.base import is_literal

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context


class PromptOperator(BaseOperator):
    """
    An operator whose prompt may be in a file.

    Airflow takes every templated field that ends in one of ``template_ext`` for a file's name, and so would a watermark
    or an argument of a decorated function be. Here the prompt alone is.
    """

    template_ext: Sequence[str] = PROMPT_FILE_EXTENSIONS

    prompt: str

    def names_file(self, value: object) -> bool:
        """Tell whether a field is what Airflow takes for a file's name."""
        return isinstance(value, str) and value.endswith(tuple(self.template_ext))

    def check_literal_prompt(self) -> None:
        """
        Refuse in the DAG file a prompt that cannot work; one in a file is checked once it is read.

        :raises LumaValidationError: see :func:`~airflow_provider_luma.core.validation.check_prompt`
        """
        if is_literal(self.prompt) and not self.names_file(self.prompt):
            check_prompt(self.prompt)

    def resolve_template_files(self) -> None:
        """Read the prompt's file when the DAG is parsed."""
        if self.names_file(self.prompt):
            self.prompt = _read(self.prompt, self.get_template_env())
            self.check_literal_prompt()
        self.prepare_template()

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render a template; read the prompt's file, where that was not done when the DAG was parsed."""
        if not isinstance(content, str) or id(content) in (seen_oids or ()):
            return super().render_template(content, context, jinja_env, seen_oids)
        names_file = self.names_file(content)
        if names_file and content is self.prompt:
            try:
                content = _read(content, jinja_env or self.get_template_env())
            except LumaValidationError as error:
                raise AirflowFailException(str(error)) from error
        elif names_file:
            content = _as_text(content)
        # Of a member of an enumeration of texts, Jinja would render the name.
        rendered = super().render_template(str.__str__(content), context, jinja_env, seen_oids)
        # The newline of _as_text, which the Jinja environment of a DAG may keep.
        return rendered.removesuffix("\n") if names_file and isinstance(rendered, str) else rendered


def _as_text(text: str) -> str:
    """Return a template that Airflow does not take for a file's name, whatever it ends in."""
    return f"{text}\n"


def _read(name: str, env: jinja2.Environment) -> str:
    """
    Return what a prompt's file holds, as a template.

    :raises LumaValidationError: there is no such file, or it cannot be read, or is empty
    """
    import jinja2

    try:
        if env.loader is None:
            raise jinja2.TemplateNotFound(name)
        text = env.loader.get_source(env, name)[0].removeprefix("\ufeff").strip()
    except jinja2.TemplateNotFound as error:
        folders = ", ".join(map(str, getattr(env.loader, "searchpath", ()))) or "no folder, as there is no DAG"
        raise LumaValidationError(
            None,
            f"prompt is {name!r}, and so names a file, which was not found. Searched in {folders} (the folder of the "
            "DAG file and the DAG's template_searchpath). If it is the text itself, end it with a blank or a full stop",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise LumaValidationError(None, f"prompt is {name!r}, a file that cannot be read: {error}") from error
    if not text:
        raise LumaValidationError(None, f"prompt is {name!r}, a file that is empty")
    return _as_text(text)
