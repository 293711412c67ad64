"""Chat templates with tools as families of models have them, written from their documentation, with small tokenizers.

Each writes the tokens that the family's own template writes for tools, calls and results; what these leave out or
refuse, these leave out and refuse.
"""

from dataclasses import dataclass

from tests.small_tokenizers import CONTROL, TEXTS
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from luthier.data.template_sources import BUILTIN
from luthier.data.templates import Template

# Qwen2.5 (its documentation of function calls) and Hermes: calls in tags; results in a
# user turn, those of one turn together
QWEN25 = (
    "{%- set own = messages[0].content if messages[0].role == 'system' else 'You are a helpful assistant.' -%}"
    "{{- '<|im_start|>system\\n' + own -}}"
    "{%- if tools -%}{{- '\\n\\n# Tools\\n<tools>' -}}"
    "{%- for tool in tools -%}{{- '\\n' + tool | tojson -}}{%- endfor -%}{{- '\\n</tools>' -}}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'tool' -%}"
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}"
    "{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' -}}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}"
    "{%- elif m.role == 'assistant' and m.tool_calls -%}"
    "{{- '<|im_start|>assistant' -}}{%- if m.content -%}{{- '\\n' + m.content -}}{%- endif -%}"
    "{%- for call in m.tool_calls -%}"
    '{{- \'\\n<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' -}}'
    "{{- call.function.arguments | tojson + '}\\n</tool_call>' -}}"
    "{%- endfor -%}{{- '<|im_end|>\\n' -}}"
    "{%- elif not (m.role == 'system' and loop.first) -%}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
# Qwen3: as Qwen2.5, with the reasoning of the latest turn in front of the calls, and an empty one in its prompt
QWEN3 = QWEN25.replace(
    "'<|im_start|>assistant\\n' -}}{%- endif -%}",
    "'<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}",
)
# Llama 3.1 to 3.3 (its prompt format, "JSON based tool calling"): one
# call, which is the whole turn; its text is left out
LLAMA3 = (
    "{{- bos_token -}}"
    "{%- set own = messages[0].content | trim if messages[0].role == 'system' else '' -%}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' -}}"
    "{%- if tools -%}{{- 'Environment: ipython\\n' -}}{%- endif -%}"
    "{{- own -}}"
    "{%- for tool in tools or [] -%}{{- '\\n\\n' + tool | tojson(indent=4) -}}{%- endfor -%}"
    "{{- '<|eot_id|>' -}}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'tool' -%}"
    "{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + m.content | tojson + '<|eot_id|>' -}}"
    "{%- elif m.tool_calls -%}"
    "{%- if m.tool_calls | length != 1 -%}{{- raise_exception('only one tool call a turn') -}}{%- endif -%}"
    "{%- set call = m.tool_calls[0].function -%}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}"
    "{{- '{\"name\": \"' + call.name + '\", \"parameters\": ' + call.arguments | tojson + '}<|eot_id|>' -}}"
    "{%- elif not (m.role == 'system' and loop.first) -%}"
    "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' -}}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
)
# Mistral's v3 tokenizer (its guide to tokenization): tools before the last question, calls as one
# list with ids of nine characters, results with them
MISTRAL = (
    "{%- set turns = messages[1:] if messages[0].role == 'system' else messages -%}"
    "{%- set asked = namespace(last=-1) -%}"
    "{%- for m in turns if m.role == 'user' -%}{%- set asked.last = asked.last + 1 -%}{%- endfor -%}"
    "{%- set seen = namespace(users=-1) -%}"
    "{{- bos_token -}}"
    "{%- for m in turns -%}"
    "{%- if m.role == 'user' -%}{%- set seen.users = seen.users + 1 -%}"
    "{%- if tools and seen.users == asked.last -%}"
    "{{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' -}}"
    "{%- endif -%}"
    "{{- '[INST] ' -}}"
    "{%- if messages[0].role == 'system' and loop.last -%}{{- messages[0].content + '\\n\\n' -}}{%- endif -%}"
    "{{- m.content + '[/INST]' -}}"
    "{%- elif m.role == 'assistant' and m.tool_calls -%}"
    "{{- '[TOOL_CALLS] [' -}}"
    "{%- for call in m.tool_calls -%}"
    "{%- if not call.id or call.id | length != 9 -%}"
    "{{- raise_exception('ids of calls have nine characters') -}}"
    "{%- endif -%}"
    "{{- (call.function | tojson)[:-1] + ', \"id\": \"' + call.id + '\"}' + ('' if loop.last else ', ') -}}"
    "{%- endfor -%}{{- ']' + eos_token -}}"
    "{%- elif m.role == 'assistant' -%}{{- ' ' + m.content + eos_token -}}"
    "{%- elif m.role == 'tool' -%}"
    "{{- '[TOOL_RESULTS] {\"content\": ' + m.content | tojson + ', \"call_id\": \"' + m.tool_call_id + '\"}' -}}"
    "{{- '[/TOOL_RESULTS]' -}}"
    "{%- endif -%}{%- endfor -%}"
)
# Gemma 3 (its prompt structure): no tools
GEMMA3 = (
    "{{- bos_token -}}"
    "{%- set own = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' -%}"
    "{%- for m in messages if not (m.role == 'system' and loop.first) -%}"
    "{%- set who = 'model' if m.role == 'assistant' else m.role -%}"
    "{{- '<start_of_turn>' + who + '\\n' + (own if loop.first else '') + m.content | trim + '<end_of_turn>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"
)
# a form that nobody reads: calls as Python, as some models write them
PYTHONIC = (
    "{%- for tool in tools or [] -%}{{- tool | tojson + '\\n' -}}{%- endfor -%}"
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' + m.content -}}"
    "{%- for call in m.tool_calls or [] -%}"
    "{{- '[' + call.function.name + '(' + call.function.arguments | tojson + ')]' -}}"
    "{%- endfor -%}{{- '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class Family:
    """A template, and what stands in for the family's tokenizer."""

    source: str
    special: tuple[str, ...] = CONTROL
    added: tuple[str, ...] = ()
    """Added tokens that are not special."""
    bos: str = "<|im_start|>"
    eos: str = "<|im_end|>"

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Bytes and a few pairs of them, and the family's control tokens."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(TEXTS, trainer)
        tokenizer.add_special_tokens(list(self.special))
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in self.added])
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=self.bos, eos_token=self.eos, pad_token=self.eos
        )

    def template(self, name: str) -> Template:
        """The template for that tokenizer."""
        return Template(self.tokenizer(), self.source, name)


TAGS = ("<tool_call>", "</tool_call>")
FAMILIES = {
    "chatml_tools": Family((BUILTIN / "chatml_tools.jinja").read_text(encoding="utf-8")),
    "qwen2.5": Family(QWEN25, added=TAGS),
    "qwen3": Family(QWEN3, added=(*TAGS, "<think>", "</think>")),
    "hermes": Family(QWEN25, special=(*CONTROL, *TAGS)),
    "llama3": Family(
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
    ),
    "mistral": Family(
        MISTRAL,
        (
            *("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
            *("[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        ),
        bos="<s>",
        eos="</s>",
    ),
}
"""Those that write calls that are read back."""
GEMMA = Family(GEMMA3, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), bos="<bos>", eos="<eos>")
UNREAD = Family(PYTHONIC)
