"""Who teaches a training, and how it comes to be asked (`[teacher]` of a recipe).

An objective of given rows asks once, before the first step, and what was said is kept, so that teacher and student are
not in memory together while one of them learns. An online objective asks of replies that nobody knows beforehand, and
the teacher stays. It reads the same replies as its student, rendered with its own template, behind a longer prompt if
the recipe has one; where its tokenizer is another one, it is asked at the tokens that both have at the same places.
"""
