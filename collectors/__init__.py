"""One source of facts per file. Collectors make facts and hold no opinions."""
