"""Three small models trained alike, which differ in what may serve as an attention sink."""
