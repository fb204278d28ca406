# Sourced by real.sh and reproduce_tables.sh: the recipe for people never seen (chosen as docs/experiments.md says).
text_recipe=(--encoder eegnet --band 4 40 --augment mirror shift --epochs 8 --warmup_epochs 0 --batch_size 64
  --gradient_accumulation_steps 1 --eval_batch_size 200 --lr 2e-3 --encoder_lr 2e-3 --max_new_tokens 20
  --mirror_average --cuda -1)
network_recipe=(--band 4 40 --augment mirror shift --cuda -1) # eegnet, shallow as baselines
classical_recipe=(--window 0.5 4)
conditions="nothing causal session" # what is used of the test person
condition() { # one of the conditions → flags
  case $1 in
    nothing) echo --align none ;;
    causal) echo --align causal --adapt prior_causal ;;
    session) echo --align session --adapt prior ;;
  esac
}
