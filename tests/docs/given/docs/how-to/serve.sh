python - << 'END'
from tokenizers import Tokenizer, models, pre_tokenizers, decoders
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

letters = {"<end>": 0} | {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 1)}
backend = Tokenizer(models.BPE(letters, []))
backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
backend.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", model_max_length=512)
tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
tokenizer.save_pretrained("build/decoder")
config = GPT2Config(vocab_size=len(letters), n_embd=16, n_layer=1, n_head=2, n_positions=512, bos_token_id=0, eos_token_id=0)
GPT2LMHeadModel(config).save_pretrained("build/decoder")
base = GPT2LMHeadModel.from_pretrained("build/decoder")
adapter = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], init_lora_weights=False)
get_peft_model(base, adapter).save_pretrained("build/writing/mine")
END
lsr bank --from build/writing/mine -o build/writers
