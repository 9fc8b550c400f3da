"""Files whose content decides something: written durably, read with distrust."""
