"""The parts screens are made of; each is given what it shows and posts what was done to it."""
