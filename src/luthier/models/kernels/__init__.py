"""Arithmetic of a decoder layer, written by hand where that pays; each file has its plain reference beside it.

`native` compiles the C files for this machine, if it has a compiler; without one, on other devices and for other number
formats, the references compute. `decoder` puts them to work.
"""
