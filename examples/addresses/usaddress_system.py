"""The released usaddress tagger (a conditional random field) as an external system: prompts in, answers out.

It was trained on the very addresses that the test rows are drawn from, so its score is no held-out figure; for a fair
one see usaddress_retrained.py. Reads a JSON object {"id", "messages"} a line, writes {"id", "output"} a line.
"""

import json
import sys

import usaddress
from address_labels import to_json, user_text


def main() -> None:
    """Tag the address of every line of standard input."""
    for line in sys.stdin:
        row = json.loads(line)
        tagged = usaddress.parse(user_text(row["messages"]))
        print(json.dumps({"id": row["id"], "output": to_json(tagged)}, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
