"""The tests of OpenAI's own client against our server: `make conformance`."""
