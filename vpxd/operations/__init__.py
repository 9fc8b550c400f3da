"""What clients may order, one function per order; the services only parse and map."""
