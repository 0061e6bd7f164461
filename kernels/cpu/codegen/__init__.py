"""Machine code for the innermost loops, written as LLVM text for the processor at hand."""
