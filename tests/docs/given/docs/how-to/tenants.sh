sed '1s/.*/label,text/; s/^-2/bad/; s/^2/good/' data/tweets.csv > all.csv
for name in shops late; do
    awk 'NR == 1 { print "tenant," $0 } NR > 1 { print "'$name'" int(NR % 4 / 2) "," $0 }' all.csv > data/$name.csv
done
head -n 61 all.csv > data/corner-shop.csv
python -m pipeline.add data/shops.csv --tenant tenant
dvc exp run -S data=shops -S adapter=lora
