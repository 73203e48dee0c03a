"""Words of the generated catalogue: kinds of product with their names, attributes, options and prices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["BRANDS", "CHOICES", "EXTRAS", "KINDS", "STYLES", "Kind"]


@dataclass(frozen=True)
class Kind:
    """A kind of product.

    Titles use one of ``names``, instructions use ``query``; prices are in US dollars.
    """

    category: str
    path: str
    query: str
    names: tuple[str, ...]
    attributes: tuple[str, ...]
    choices: Mapping[str, str]
    """Option name -> name of the list in ``CHOICES`` that its values come from."""
    cheapest: float
    dearest: float


BRANDS = (
    "Alder & Finch",
    "Brightwell",
    "Corva",
    "Dunmore",
    "Elkstone",
    "Farrow",
    "Glimra",
    "Hollis",
    "Ivarsson",
    "Juniper Lane",
    "Kite & Key",
    "Lumo",
    "Marlowe",
    "Northbay",
    "Orsk",
    "Pinewell",
    "Quillon",
    "Rosa Verde",
    "Sandhill",
    "Tovi",
    "Umbra Nine",
    "Vantor",
    "Westerly",
    "Zephyr Co",
)

STYLES = (
    "Classic",
    "Modern",
    "Premium",
    "Everyday",
    "Deluxe",
    "Compact",
    "Portable",
    "Vintage",
    "Natural",
    "Professional",
)

EXTRAS = (
    "Gift for Family",
    "for Home and Office",
    "Travel Size",
    "Summer Edition",
    "Birthday Present",
    "Starter Set",
    "for Men and Women",
    "New Design",
    "Value Pack",
    "Outdoor Use",
)

CHOICES: Mapping[str, tuple[str, ...]] = {
    "colours": (
        "Black",
        "White",
        "Navy Blue",
        "Wine Red",
        "Olive Green",
        "Light Gray",
        "Rose Gold",
        "Teal",
        "Mustard Yellow",
        "Plum",
        "Black/White",
        "Coral Pink",
    ),
    "clothing sizes": ("X-Small", "Small", "Medium", "Large", "X-Large", "XX-Large", "3X-Large"),
    "shoe sizes": ("6", "6.5", "7", "7.5", "8", "8.5", "9", "9.5", "10", "11"),
    "fits": ("Regular", "Slim", "Relaxed", "Petite", "Tall"),
    "volumes": ("2 Fl Oz", "4 Fl Oz (Pack of 2)", "8 Fl Oz", "12 Fl Oz", "16.9 Fl Oz (Pack of 1)", "1 Gallon"),
    "scents": ("Lavender", "Unscented", "Citrus", "Eucalyptus Mint", "Vanilla", "Cedarwood"),
    "flavours": (
        "Dark Chocolate",
        "Sea Salt",
        "Peanut Butter",
        "Honey Almond",
        "Mixed Berry",
        "Original",
        "Cinnamon",
        "Jalapeno",
    ),
    "packs": ("1 Count", "6 Count (Pack of 1)", "12 Count", "1.5 Ounce (Pack of 12)", "1 Pound", "2 Pound (Pack of 3)"),
    "storage": ("64GB", "128GB", "256GB", "512GB", "1TB"),
    "lengths": ("3 Feet", "6 Feet", "10 Feet", "15 Feet", "25 Feet"),
    "screens": ("32 Inch", "43 Inch", "55 Inch", "65 Inch", "75 Inch"),
    "beds": ("Twin", "Twin XL", "Full", "Queen", "King", "California King"),
    "panels": ('42"W x 63"L', '52"W x 84"L', '52"W x 95"L', '54"W x 108"L'),
    "rugs": ("2' x 3'", "3' x 5'", "5' x 7'", "8' x 10'", "2' x 8' Runner"),
    "furniture": ("24 Inch", "30 Inch", "36 Inch", "47 Inch", "60 Inch"),
}

_SHOES = "Clothing, Shoes & Jewelry \u203a {who} \u203a Shoes \u203a {what}"
_CLOTHES = "Clothing, Shoes & Jewelry \u203a {who} \u203a Clothing \u203a {what}"
_WEAR = {"Color": "colours", "Size": "clothing sizes"}
_FURNITURE = "Home & Kitchen \u203a Furniture \u203a {what}"
_FOOD = "Grocery & Gourmet Food \u203a {what}"
_TASTE = {"Flavor Name": "flavours", "Size": "packs"}


def _kind(
    category: str,
    path: str,
    query: str,
    names: str,
    attributes: str,
    choices: Mapping[str, str],
    low: float,
    high: float,
) -> Kind:
    return Kind(category, path, query, tuple(names.split("|")), tuple(attributes.split("|")), choices, low, high)


KINDS: tuple[Kind, ...] = (
    _kind(
        "fashion",
        _CLOTHES.format(who="Men", what="Shirts \u203a T-Shirts"),
        "men's t-shirts",
        "T-Shirt|Graphic Tee|Henley Shirt|Pocket Tee",
        "machine wash|classic fit|short sleeve|crew neck|cotton spandex|tumble dry",
        {**_WEAR, "Fit Type": "fits"},
        9,
        45,
    ),
    _kind(
        "fashion",
        _CLOTHES.format(who="Women", what="Dresses \u203a Casual"),
        "women's dresses",
        "Maxi Dress|Wrap Dress|Sundress|Shirt Dress",
        "hand wash|long sleeve|elastic waist|v neck|polyester spandex|button closure",
        _WEAR,
        18,
        120,
    ),
    _kind(
        "fashion",
        _SHOES.format(who="Women", what="Sandals"),
        "women's sandals",
        "Slide Sandal|Wedge Sandal|Platform Sandal|Ankle Strap Sandal",
        "open toe|ankle strap|leather sole|arch support|slip resistant|memory foam",
        {"Color": "colours", "Size": "shoe sizes"},
        15,
        95,
    ),
    _kind(
        "fashion",
        _SHOES.format(who="Men", what="Athletic"),
        "men's athletic shoes",
        "Running Shoe|Trail Shoe|Training Sneaker|Walking Shoe",
        "rubber sole|lace closure|moisture wicking|arch support|non slip|ethylene vinyl",
        {"Color": "colours", "Size": "shoe sizes"},
        25,
        180,
    ),
    _kind(
        "beauty",
        "Beauty & Personal Care \u203a Hair Care \u203a Shampoo & Conditioner",
        "shampoo",
        "Shampoo|Shampoo Bar|Scalp Shampoo|Conditioner",
        "sulfate free|paraben free|argan oil|tea tree|dry hair|cruelty free",
        {"Scent": "scents", "Size": "volumes"},
        6,
        48,
    ),
    _kind(
        "beauty",
        "Beauty & Personal Care \u203a Makeup \u203a Lips \u203a Lipstick",
        "lipstick",
        "Liquid Lipstick|Matte Lipstick|Lip Stain|Lip Crayon",
        "long lasting|highly pigmented|fragrance free|easy apply|vitamin e|water resistant",
        {"Color": "colours"},
        4,
        36,
    ),
    _kind(
        "beauty",
        "Beauty & Personal Care \u203a Skin Care \u203a Face \u203a Moisturizers",
        "face moisturizer",
        "Face Cream|Day Lotion|Night Cream|Gel Moisturizer",
        "hyaluronic acid|sensitive skin|oil free|dermatologist tested|anti aging|alcohol free",
        {"Scent": "scents", "Size": "volumes"},
        8,
        85,
    ),
    _kind(
        "beauty",
        "Beauty & Personal Care \u203a Oral Care \u203a Toothbrushes",
        "toothbrushes",
        "Bamboo Toothbrush|Kids Toothbrush|Travel Toothbrush|Sonic Toothbrush",
        "bpa free|soft bristles|teeth whitening|oral hygiene|eco friendly|sensitive teeth",
        {"Color": "colours", "Size": "packs"},
        5,
        70,
    ),
    _kind(
        "electronics",
        "Electronics \u203a Headphones \u203a Over-Ear Headphones",
        "headphones",
        "Over Ear Headphones|Gaming Headset|Studio Headphones|Wireless Earbuds",
        "noise cancelling|stereo sound|fast charging|hands free|long lasting battery|bluetooth 5.0",
        {"Color": "colours"},
        19,
        320,
    ),
    _kind(
        "electronics",
        "Electronics \u203a Computers & Accessories \u203a Tablets",
        "tablets",
        "Android Tablet|Drawing Tablet|Kids Tablet|Reading Tablet",
        "high definition|quad core|dual camera|touch screen|long battery life|wifi 6",
        {"Color": "colours", "Size": "storage"},
        70,
        780,
    ),
    _kind(
        "electronics",
        "Electronics \u203a Accessories & Supplies \u203a Cables",
        "charging cables",
        "Charging Cable|HDMI Cable|Extension Cord|Data Cable",
        "gold plated|fast charging|high speed|nylon braided|heavy duty|plug play",
        {"Color": "colours", "Size": "lengths"},
        5,
        42,
    ),
    _kind(
        "electronics",
        "Electronics \u203a Television & Video \u203a Accessories \u203a TV Mounts",
        "tv mounts",
        "TV Wall Mount|TV Stand|Ceiling Mount Bracket|Swivel Mount",
        "wall mounted|easy install|heavy duty|steel frame|height adjustable|tempered glass",
        {"Color": "colours", "Size": "screens"},
        18,
        210,
    ),
    _kind(
        "garden",
        "Home & Kitchen \u203a Bedding \u203a Sheets & Pillowcases",
        "bed sheets",
        "Bed Sheet Set|Pillow Case|Fitted Sheet|Duvet Cover",
        "machine washable|super soft|queen size|ultra soft|long staple|fade resistant",
        {"Color": "colours", "Size": "beds"},
        14,
        160,
    ),
    _kind(
        "garden",
        "Home & Kitchen \u203a Home D\u00e9cor \u203a Window Treatments",
        "window curtains",
        "Blackout Curtain|Sheer Curtain|Curtain Panel|Window Valance",
        "living room|machine washable|dining room|energy efficient|light filtering|easy hang",
        {"Color": "colours", "Size": "panels"},
        12,
        110,
    ),
    _kind(
        "garden",
        _FURNITURE.format(what="Living Room Furniture \u203a Sofas & Couches"),
        "sofas",
        "Sectional Sofa|Sleeper Sofa|Loveseat|Futon Couch",
        "solid wood|mid century|high density foam|easy assemble|faux leather|storage space",
        {"Color": "colours", "Size": "furniture"},
        260,
        1900,
    ),
    _kind(
        "garden",
        "Home & Kitchen \u203a Rugs \u203a Area Rugs",
        "area rugs",
        "Area Rug|Shag Rug|Runner Rug|Washable Rug",
        "non slip|easy clean|living room|stain resistant|low pile|hand woven",
        {"Color": "colours", "Size": "rugs"},
        20,
        420,
    ),
    _kind(
        "grocery",
        _FOOD.format(what="Snack Foods \u203a Bars \u203a Granola"),
        "granola bars",
        "Granola Bar|Protein Bar|Oat Snack Bar|Nut Bar",
        "gluten free|plant based|high protein|low sugar|individually wrapped|non gmo",
        _TASTE,
        4,
        48,
    ),
    _kind(
        "grocery",
        _FOOD.format(what="Beverages \u203a Coffee \u203a Ground"),
        "coffee",
        "Ground Coffee|Coffee Pods|Whole Bean Coffee|Cold Brew Coffee",
        "usda organic|caffeine free|fair trade|artificial flavors|single origin|rich aroma",
        _TASTE,
        7,
        65,
    ),
    _kind(
        "grocery",
        _FOOD.format(what="Produce \u203a Dried Fruits & Vegetables"),
        "dried fruits",
        "Dried Mango|Freeze Dried Strawberries|Banana Chips|Trail Mix",
        "no added sugar|resealable bag|dairy free|nut free|ready eat|real fruit",
        _TASTE,
        4,
        39,
    ),
    _kind(
        "grocery",
        _FOOD.format(what="Pantry Staples \u203a Cooking Oils"),
        "cooking oil",
        "Olive Oil|Avocado Oil|Coconut Oil|Sesame Oil",
        "cold pressed|extra virgin|keto friendly|certified organic|kosher certified|gluten free",
        {"Size": "volumes"},
        6,
        58,
    ),
)
