"""What a template leaves out of a conversation, for tests of templates."""

from luthier.data.templates import Template
from luthier.examples import Conversation
from luthier.preflight._text import leaves, message_leaves, occurs
from luthier.preflight.nothing_dropped import SCHEMA_WORDS


def left_out(template: Template, conversation: Conversation) -> list[str]:
    """Paths of the texts of a conversation that do not stand in what is rendered from it."""
    text = template.text(conversation.messages, conversation.tools)
    found = [x for i, m in enumerate(conversation.messages) for x in message_leaves(m, f"messages[{i}]")]
    listed = [x for i, tool in enumerate(conversation.tools) for x in leaves(tool, f"tools[{i}]")]
    found += [(path, leaf) for path, leaf in listed if leaf not in SCHEMA_WORDS]
    return [path for path, leaf in found if not occurs(leaf, text)]
