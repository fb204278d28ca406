"""Files from strangers, read without running what is in them: MATLAB, LMDB, pickles, captions, GDF and EEGLAB."""
