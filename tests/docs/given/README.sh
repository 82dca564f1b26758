sed '1s/.*/stars,review/; s/^-2/bad/; s/^2/good/' data/tweets.csv > data/reviews.csv
