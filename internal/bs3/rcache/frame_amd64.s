#include "textflag.h"

// Stores that go past the processor's cache (MOVNTDQ, Intel 64 and IA-32
// Architectures Software Developer's Manual, volume 2B) are ordered by SFENCE.

// func copyLines(frame, block *byte, n int)
TEXT ·copyLines(SB), NOSPLIT, $0-24
	MOVQ frame+0(FP), DI
	MOVQ block+8(FP), SI
	MOVQ n+16(FP), CX

line:
	MOVOU  (SI), X0
	MOVOU  16(SI), X1
	MOVOU  32(SI), X2
	MOVOU  48(SI), X3
	MOVNTO X0, (DI)
	MOVNTO X1, 16(DI)
	MOVNTO X2, 32(DI)
	MOVNTO X3, 48(DI)
	ADDQ   $64, SI
	ADDQ   $64, DI
	SUBQ   $64, CX
	JNE    line
	SFENCE
	RET
