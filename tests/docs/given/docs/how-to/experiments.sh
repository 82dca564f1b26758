lsr export artifacts/adapter --to lora -o models/trained
