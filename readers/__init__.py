"""Files from strangers, read without running what is in them: MATLAB, LMDB, pickles, GDF and EEGLAB recordings."""
