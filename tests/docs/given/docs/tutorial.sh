deactivate
mkdir ../elsewhere
sed '1s/.*/stars,text/; s/^-2/low/; s/^2/high/' data/tweets.csv > ../elsewhere/reviews.csv
ln -s "$PWD" ../elsewhere/REPOSITORY
cd ../elsewhere
cp reviews.csv new.csv
