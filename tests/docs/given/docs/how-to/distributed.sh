sed -i 's/^seed: 0/seed: 1/' params.yaml
