lsr export artifacts/adapter --to lora -o my-lora
sed '1s/.*/rating,review/; s/^-2/-2/; s/^2/2/' data/tweets.csv > new.csv
sed '1s/.*/rating,message/; s/^-2/-2/; s/^2/2/' data/tweets.csv > tickets.csv
echo A warm, funny and generous film. > lines.txt
