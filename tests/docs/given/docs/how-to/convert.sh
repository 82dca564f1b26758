lsr export artifacts/adapter --to lora -o my-lora
sed '1s/.*/rating,review/; s/^-2/-2/; s/^2/2/' data/tweets.csv > new.csv
sed '1s/.*/rating,message/; s/^-2/-2/; s/^2/2/' data/tweets.csv > tickets.csv
echo A warm, funny and generous film. > lines.txt
python - << 'END'
from pathlib import Path

from peft import LoHaConfig, VeraConfig, get_peft_model

from lsr.loading.base_models import load_base
from lsr.tuner.files import read_files

files = read_files(Path("my-lora"))
own = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"], "r": 4, "init_weights": False}
for name, config in (("my-vera", VeraConfig(**own)), ("my-loha", LoHaConfig(**own))):
    base = load_base(files.fields, files.tensors)
    base.name_or_path = files.fields["base_model_name_or_path"]
    get_peft_model(base, config).save_pretrained(name)
END
