"""What things cost: a dated and sourced book of prices, an hour of the own machine, and a month at a volume.

`book.py` reads `prices.toml`, the book that ships, and a user's own over it; `machine.py` prices an hour of the machine
at hand; `ramp.py` is the arithmetic of volumes. Nothing is fetched: a price is as old as its entry says.
"""

from luthier.prices.book import Book as Book, Price as Price, open_book as open_book, require_prices as require_prices
from luthier.prices.machine import Machine as Machine, own_machine as own_machine
