/* recolour of yolov7/data/augment/colour.py in one pass over the pixels, without OpenCV's rounding to 8 bits in between.
 *
 * The same on every processor: nothing is contracted or reordered. The loops are written for compilers to vectorise.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <math.h>
#include <stdint.h>

#define BLOCK 256 /* pixels that are worked on as planes */
#define LANES 32  /* a multiple of what an instruction takes */

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define FOR_EACH_CPU __attribute__((target_clones("avx2", "default")))
#else
#define FOR_EACH_CPU
#endif

typedef struct {
    float hue, saturation, value;
} Gains;

typedef uint8_t Planes[3][BLOCK];

static inline float least(float a, float b) { return a < b ? a : b; }
static inline float most(float a, float b) { return a > b ? a : b; }

/* Of a channel that lies `below` the highest one, as a share of the range between that and the lowest one. */
static inline uint8_t level(float high, float range, float below)
{
    return (uint8_t)(int)(high - range * least(most(below, 0), 1) + 0.5f);
}

/* Of the first `count` pixels, rounded up to whole LANES. Hues are in sixths of the circle, 0 being red, 2 green. */
static inline void recolour_planes(Planes planes, int count, Gains gains)
{
    for (int i = 0; i < (count + LANES - 1) / LANES * LANES; i++) {
        float r = planes[0][i], g = planes[1][i], b = planes[2][i];
        float value = most(r, most(g, b)), chroma = value - least(r, least(g, b));
        float hue = value == r ? g - b : value == g ? b - r + 2 * chroma : r - g + 4 * chroma;
        hue = gains.hue * hue / most(chroma, 1);
        hue += hue < 0 ? 6 * gains.hue : 0;
        hue -= hue >= 6 ? 6 : 0;

        float high = least(gains.value * value, 255);
        float range = high * least(gains.saturation * chroma / most(value, 1), 1);
        planes[0][i] = level(high, range, 2 - fabsf(hue - 3));
        planes[1][i] = level(high, range, fabsf(hue - 2) - 1);
        planes[2][i] = level(high, range, fabsf(hue - 4) - 1);
    }
}

FOR_EACH_CPU
static void recolour_row(const uint8_t *source, uint8_t *target, Py_ssize_t width, Gains gains)
{
    Planes planes = {{0}};
    for (Py_ssize_t start = 0; start < width; start += BLOCK) {
        int count = width - start < BLOCK ? (int)(width - start) : BLOCK;
        const uint8_t *from = source + 3 * start;
        uint8_t *to = target + 3 * start;
        for (int i = 0; i < count; i++) {
            planes[0][i] = from[3 * i];
            planes[1][i] = from[3 * i + 1];
            planes[2][i] = from[3 * i + 2];
        }
        recolour_planes(planes, count, gains);
        for (int i = 0; i < count; i++) {
            to[3 * i] = planes[0][i];
            to[3 * i + 1] = planes[1][i];
            to[3 * i + 2] = planes[2][i];
        }
    }
}

static int is_image(const Py_buffer *view)
{
    return view->itemsize == 1 && view->ndim == 3 && view->shape[2] == 3 && view->strides[2] == 1 &&
           (view->strides[1] == 3 || view->shape[1] <= 1);
}

static PyObject *recolour(PyObject *module, PyObject *args)
{
    PyObject *source, *target;
    Py_buffer from, to;
    Gains gains;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOfff", &source, &target, &gains.hue, &gains.saturation, &gains.value))
        return NULL;
    if (PyObject_GetBuffer(source, &from, PyBUF_STRIDED_RO))
        return NULL;
    if (PyObject_GetBuffer(target, &to, PyBUF_STRIDED)) {
        PyBuffer_Release(&from);
        return NULL;
    }
    int fit = is_image(&from) && is_image(&to) && from.shape[0] == to.shape[0] && from.shape[1] == to.shape[1];
    if (fit) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t y = 0; y < from.shape[0]; y++)
            recolour_row((const uint8_t *)from.buf + y * from.strides[0], (uint8_t *)to.buf + y * to.strides[0],
                         from.shape[1], gains);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&to);
    PyBuffer_Release(&from);
    if (!fit) {
        PyErr_SetString(PyExc_ValueError, "two images (H, W, 3) of bytes and of one size are needed");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"recolour", recolour, METH_VARARGS, "From one image (H, W, 3) into another, or itself."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_colour", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__colour(void) { return PyModuleDef_Init(&definition); }
