/* Compiles if the installed headers are complete (see the tests of recipe.yaml). */
#include <pyhub/datablock.h>

int main(void)
{
	return 0;
}
