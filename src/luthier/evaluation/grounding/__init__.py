"""Answers beside their passages: supported, unsupported or abstained, by a checker whose own error is measured."""
